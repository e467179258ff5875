"""The page: its fields and players, and what its buttons do. Only ``serve`` imports this, as it imports Gradio."""

import html
import re
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from megatron_music.errors import InputError
from megatron_music.generation.demo.song import TRACK_ORDER, Finished, Form, Visitors, make_song
from megatron_music.generation.request import Stopped
from megatron_music.generation.sampling import SamplingSettings, option_of
from megatron_music.generation.song import FORMATS, Studio

UPLOAD_TYPES = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
MOST_UPLOAD_MB = 64
KEPT_S, CLEARED_EVERY_S = 86_400, 3_600
MOST_WAITING = 32
LYRICS_EXAMPLE = "[verse]\nStaring at the sunset, colors paint the sky\n...\n\n[chorus]\n..."
SETTING_LABELS = {
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "repetition_penalty": "Repetition penalty",
    "guidance_first": "Guidance, first section",
    "guidance_rest": "Guidance, other sections",
    "min_new_tokens": "Fewest tokens a section",
    "max_new_tokens": "Most tokens a section",
}
# Names alone: fonts of Gradio's own themes are asked of Google.
THEME = gr.themes.Default(
    primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.status { min-height: 5.5rem; padding: 0.9rem 1.1rem; border-radius: 8px; background: var(--block-background-fill); }
.status p { margin: 0 0 0.3rem; overflow-wrap: anywhere; }
.status .error { color: #b3261e; font-weight: 500; }
.status .hint, .status .soft { opacity: 0.75; }
.dark .status .error { color: #ff8a80; }
"""


class Page:
    """The page of one studio, as a ``gradio.Blocks`` in ``blocks``.

    Args:
        songs: folder for finished songs.
        known_tags: offered, and others hinted at; None offers none.
        visitors: told who is sung for.
    """

    def __init__(self, studio: Studio, songs: Path, known_tags: list[str] | None, visitors: Visitors):
        self.studio, self.songs = studio, songs
        self.known_tags, self.visitors = known_tags, visitors
        with gr.Blocks(
            title="megatron-music", analytics_enabled=False, delete_cache=(CLEARED_EVERY_S, KEPT_S)
        ) as self.blocks:
            gr.Markdown("# megatron-music\nLyrics and tags to a song.")
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self.fields = _prompt(known_tags or []) | _reference() | _settings()
                with gr.Column(scale=6, min_width=320):
                    with gr.Row():
                        sing = gr.Button("Generate", variant="primary", min_width=120, elem_id="generate")
                        stop = gr.Button("Stop", min_width=120, elem_id="stop")
                    self.outputs = _outputs()
            event = sing.click(
                self._sing,
                set(self.fields.values()),
                list(self.outputs.values()),
                show_progress_on=self.outputs["status"],
                concurrency_limit=1,
                api_visibility="private",
            )
            # A song that is waiting leaves the queue by `cancels`; one that is being sung ends by its watch.
            stop.click(self._stop, None, self.outputs["status"], cancels=event, queue=False, api_visibility="private")
            self.blocks.unload(self._left)
        self.blocks.queue(max_size=MOST_WAITING, api_open=False)

    def _sing(self, values: dict[Any, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> dict:  # noqa: B008
        """Runs in a thread, one visitor after the other."""

        def report(share: float, what: str) -> None:
            progress(share, desc=what)

        try:
            form = _form({name: values[field] for name, field in self.fields.items()})
            with self.visitors.watch(request.session_hash) as watch:
                song = make_song(self.studio, form, self.songs, self.known_tags, watch, report)
        except InputError as error:
            return {self.outputs["status"]: _status(_line("error", _in_words_of_the_page(str(error))))}
        except Stopped:
            return {self.outputs["status"]: STOPPED}
        return {self.outputs[name]: value for name, value in _shown(song).items()}

    def _stop(self, request: gr.Request) -> str:
        self.visitors.stop(request.session_hash)
        return STOPPED

    def _left(self, request: gr.Request) -> None:
        self.visitors.stop(request.session_hash)


def _prompt(known_tags: list[str]) -> dict[str, Component]:
    lyrics = gr.Textbox(
        label="Lyrics",
        info="Sections that start with a line such as [verse], or LRC. None: a song under its tags alone.",
        placeholder=LYRICS_EXAMPLE,
        lines=10,
        max_lines=24,
        elem_id="lyrics",
    )
    tags = gr.Dropdown(
        known_tags,
        value=[],
        multiselect=True,
        allow_custom_value=True,
        label="Tags",
        info="Genre, instruments, mood, vocal gender and timbre. Choose, or write one and press Enter.",
        elem_id="tags",
    )
    with gr.Row():
        seed = gr.Number(42, label="Seed", precision=0, min_width=90, elem_id="seed")
        segments = gr.Number(0, label="Sections (0: all)", precision=0, min_width=90, elem_id="segments")
    instrumental = gr.Checkbox(label="Instrumental", elem_id="instrumental")
    return {"lyrics": lyrics, "tags": tags, "seed": seed, "segments": segments, "instrumental": instrumental}


def _reference() -> dict[str, Component]:
    upload = {"file_types": list(UPLOAD_TYPES), "height": 130, "min_width": 150}
    with gr.Accordion("Reference", open=False, elem_id="reference"):
        kinds = ", ".join(UPLOAD_TYPES)
        gr.Markdown(f"Music that the song shall resemble: {kinds}, at most {MOST_UPLOAD_MB} MB each.")
        with gr.Row():
            first = gr.File(label="A song, or its vocals", elem_id="first", **upload)
            second = gr.File(label="These vocals' accompaniment", elem_id="second", **upload)
        with gr.Row():
            start = gr.Number(0.0, label="From second", min_width=90, elem_id="start_s")
            end = gr.Number(30.0, label="to second", min_width=90, elem_id="end_s")
    return {"first": first, "second": second, "start_s": start, "end_s": end}


def _settings() -> dict[str, Component]:
    published = SamplingSettings()
    with gr.Accordion("Sampling and file", open=False, elem_id="settings"), gr.Row():
        settings = {}
        for name, label in SETTING_LABELS.items():
            value = getattr(published, name)
            precision = 0 if isinstance(value, int) else None
            settings[name] = gr.Number(value, label=label, precision=precision, min_width=140, elem_id=name)
        loudness = gr.Number(0, label="LUFS (0: as it is)", min_width=140, elem_id="loudness")
        file_format = gr.Dropdown(list(FORMATS), value=FORMATS[0], label="Format", min_width=140, elem_id="format")
    return settings | {"loudness_lufs": loudness, "file_format": file_format}


def _outputs() -> dict[str, Component]:
    hidden = {"interactive": False, "visible": False}
    picture = hidden | {"type": "filepath", "format": "png", "buttons": ["fullscreen"]}
    return {
        "status": gr.HTML(_status(_line("soft", "No song yet.")), elem_id="status"),
        "mix": gr.Audio(label="Mix", elem_id="mix", buttons=[], **hidden),
        "vocals": gr.Audio(label="Vocals", elem_id="vocals", buttons=[], **hidden),
        "accompaniment": gr.Audio(label="Accompaniment", elem_id="accompaniment", buttons=[], **hidden),
        "piano_roll": gr.Image(label="Notes of the vocals", show_label=False, elem_id="piano_roll", **picture),
        "spectrogram": gr.Image(label="Spectrogram", show_label=False, elem_id="spectrogram", **picture),
        "files": gr.File(label="Download", file_count="multiple", elem_id="files", **hidden),
    }


def _shown(song: Finished) -> dict[str, Any]:
    said = f"{song.sections} section{'s' if song.sections != 1 else ''}, {song.duration_s:.1f} s."
    files = {name: song.sounds.get(name) for name in TRACK_ORDER}
    files |= {"piano_roll": song.piano_roll, "spectrogram": song.spectrogram}
    shown = {name: gr.update(value=path and str(path), visible=path is not None) for name, path in files.items()}
    return shown | {
        "status": _status(_line("done", said), *[_line("hint", f"hint: {hint}") for hint in song.hints]),
        "files": gr.update(value=[str(path) for path in song.files], visible=True),
    }


def _form(values: dict[str, Any]) -> Form:
    """What the page's fields hold; raises InputError."""
    uploads = [values["first"], values["second"]]
    if uploads[1] is not None and uploads[0] is None:
        raise InputError("reference", "is an accompaniment alone", "name the vocals as well, or one song")
    return Form(
        lyrics=values["lyrics"] or "",
        tags=tuple(values["tags"] or ()),
        seed=_given(values, "seed"),
        segments=_given(values, "segments") or None,
        instrumental=bool(values["instrumental"]),
        reference=tuple(Path(path) for path in uploads if path is not None),
        reference_s=(_given(values, "start_s"), _given(values, "end_s")),
        settings=SamplingSettings(**{name: _given(values, name) for name in SETTING_LABELS}),
        loudness_lufs=_given(values, "loudness_lufs") or None,
        file_format=values["file_format"],
    )


def _given(values: dict[str, Any], name: str) -> Any:
    if values[name] is None:
        raise InputError(SETTING_LABELS.get(name, name), "is empty", "write a number")
    return values[name]


def _in_words_of_the_page(text: str) -> str:
    """A line of an error, which calls what was asked for by the options of `generate`."""
    labels = {option_of(name): label for name, label in SETTING_LABELS.items()}
    return re.sub("--([a-z][a-z-]+)", lambda found: labels.get(found[0], found[1].replace("-", " ")), text)


def _line(kind: str, text: str) -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def _status(*lines: str) -> str:
    return f'<div class="status" role="status">{"".join(lines)}</div>'


STOPPED = _status(_line("soft", "Stopped."))
