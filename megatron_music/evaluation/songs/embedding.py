"""Songs as a network hears them: embeddings and class probabilities of 10 s windows, by models of transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.audio.files import read_audio
from megatron_music.errors import InputError
from megatron_music.pretrained import load_pretrained, named_weights

WINDOW_S, LEAST_S = 10.0, 1.0
_BATCH = 8


class AudioNetwork:
    """A model with its feature extractor.

    Attributes:
        weights: folder, or name on the hub, the only case in which anything is downloaded.
        sample_rate: of what it hears.
        joint: whether it embeds texts beside audio (CLAP).
        classes: whether it classifies.
    """

    def __init__(self, weights: str, device: str = "cpu", classify: bool = False):
        """Raises InputError where the weights are missing, are incomplete or can't be loaded."""
        import transformers

        example = "MIT/ast-finetuned-audioset-10-10-0.4593" if classify else "laion/larger_clap_music"
        weights = named_weights(weights, example)
        kind = transformers.AutoModelForAudioClassification if classify else transformers.AutoModel
        called, mend = "an audio classifier" if classify else "an audio model", f"name a model such as {example}"
        model = load_pretrained(kind, weights, called, mend)
        self.joint = not classify and hasattr(model, "get_audio_features")
        self._tokenizer: Any = None
        local = Path(weights).is_dir()
        try:
            self._extractor = transformers.AutoFeatureExtractor.from_pretrained(weights, local_files_only=local)
            if self.joint:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=local)
        except Exception as error:  # of any type, as those of a model
            raise InputError(weights, f"can't be loaded as {called} ({error})", mend) from None
        self.weights, self.sample_rate, self.classes = weights, self._extractor.sampling_rate, classify
        self._model, self._device = model.eval().requires_grad_(False).to(device), device

    def hear(self, path: Path) -> np.ndarray:
        """One row for each 10 s of a file, float64 (W, D); a last piece below 1 s is left out where it is not alone.

        Class probabilities of a classifier; CLAP's embeddings, of length 1; of other models the mean over time of the
        last hidden states. CLAP's extractor would cut at a random place what is longer than its 10 s: windows are not.

        Raises:
            InputError: the file can't be read, or the model failed on it.
        """
        samples = read_audio(path, self.sample_rate)
        try:
            return np.concatenate([self._rows(batch) for batch in _batches(samples, self.sample_rate)])
        except (RuntimeError, ValueError) as error:  # one song that a network can't take
            raise InputError(path, f"{self.weights} failed on it ({error})", "try a CPU, or another file") from None

    def read(self, text: str) -> np.ndarray:
        """CLAP's embedding of a text, float64 (D,), of length 1."""
        import torch

        inputs = self._tokenizer([text], return_tensors="pt", truncation=True).to(self._device)
        with torch.inference_mode():
            return self._model.get_text_features(**inputs).pooler_output[0].double().cpu().numpy()

    def _rows(self, windows: list[np.ndarray]) -> np.ndarray:
        import torch

        inputs = self._extractor(windows, sampling_rate=self.sample_rate, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            if self.classes:
                rows = self._model(**inputs).logits.softmax(-1)
            elif self.joint:
                rows = self._model.get_audio_features(**inputs).pooler_output
            else:
                rows = self._model(**inputs).last_hidden_state.mean(1)
        return rows.double().cpu().numpy()


def _batches(samples: np.ndarray, sample_rate: int) -> Iterator[list[np.ndarray]]:
    """Windows side by side; a shorter one alone, so that none is padded to another's length."""
    size, least = round(WINDOW_S * sample_rate), round(LEAST_S * sample_rate)
    whole = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
    for start in range(0, len(whole), _BATCH):
        yield whole[start : start + _BATCH]
    rest = samples[len(whole) * size :]
    if len(rest) >= least or not whole:
        yield [np.pad(rest, (0, max(0, least - len(rest))))]


def frechet_distance(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to two sets of embeddings (Kilgour et al. 2019, Frechet audio distance).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^0.5)``; the trace of the root is the sum of the singular values of
    ``C1^0.5 C2^0.5``, which stays real where a set has fewer windows than dimensions.

    Raises:
        ValueError: a set has fewer than two windows.
    """
    if min(len(first_ND), len(second_MD)) < 2:
        raise ValueError("a Gaussian needs two windows")
    roots = []
    for rows in (first_ND, second_MD):
        # Rows^T Rows = C: any such factor will do in place of the root, and none needs more rows than columns.
        centred = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
        roots.append(np.linalg.qr(centred, mode="r") if len(rows) > rows.shape[1] else centred)
    shift = first_ND.mean(axis=0) - second_MD.mean(axis=0)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(0.0, shift @ shift + np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * cross))


def kl_divergence(reference_NC: np.ndarray, other_MC: np.ndarray) -> float:
    """KL divergence, in nats, of the mean class probabilities of the reference windows from those of others."""
    reference_C, other_C = (np.maximum(rows.mean(axis=0), 1e-12) for rows in (reference_NC, other_MC))
    return float(np.sum(reference_C * np.log(reference_C / other_C)))
