"""The measures of songs: what each is called, its unit, which way is better, and what to keep in mind."""

from megatron_music.evaluation.result import Measure, register

register(
    vocal_range=Measure(
        title="vocal range",
        unit="semitones",
        better="higher",
        note="Highest less lowest note of the separated vocal; a note is held for 40 ms (4 equal f0 values at 10 ms). "
        "A voice that a separator mixed up with instruments has a range that nobody sang.",
    ),
    lowest_note=Measure(title="lowest note", unit="MIDI"),
    highest_note=Measure(title="highest note", unit="MIDI"),
    distinct_notes=Measure(title="distinct notes", note="Semitones that are sung for at least 40 ms once."),
    notes_per_second=Measure(title="notes a second", note="Of the whole length; a wide vibrato is many notes."),
    note_length=Measure(title="median note length", unit="s"),
    voiced_share=Measure(title="time with a voice", unit="%", note="Share of f0 values that are voiced."),
    vocal_to_accompaniment=Measure(
        title="vocal to accompaniment", unit="dB", note="Energy of the vocals over that of the accompaniment."
    ),
    loudness=Measure(title="loudness", unit="LUFS", note="ITU-R BS.1770-4, gated; all channels count alike."),
    clipped=Measure(
        title="clipped samples",
        unit="%",
        better="lower",
        note="In runs of at least 3 samples at 0.999 of full scale or above, on one side.",
    ),
    silence=Measure(title="silence", unit="%", note="Stretches of 50 ms below -60 dBFS."),
    duration=Measure(title="length", unit="s"),
    bandwidth=Measure(title="bandwidth of 99%", unit="kHz", note="99% of the energy from 20 Hz on lies below."),
    content_end=Measure(
        title="content ends", unit="kHz", note="Highest frequency with power at most 80 dB below the strongest."
    ),
    repetition=Measure(
        title="parts that come back",
        unit="%",
        note="Share of the time in sections that sound like another one, by harmony and timbre.",
    ),
    chorus_return=Measure(
        title="chorus returns",
        better="higher",
        note="Correlation of labelled choruses with each other, less that with other sections.",
    ),
    tempo=Measure(title="tempo", unit="beats a minute"),
    tempo_stability=Measure(
        title="tempo kept", unit="%", note="Share of 15 s windows within 4% of the song's tempo, or a multiple of it."
    ),
    key_stability=Measure(
        title="key kept", unit="%", note="Share of 15 s windows in the commonest key, by Krumhansl's profiles."
    ),
    word_error=Measure(
        title="word error rate",
        unit="%",
        better="lower",
        note="Of the lyrics as a recogniser hears them in the vocals, or the mix. Recognisers mishear singing: compare "
        "systems by one recogniser only.",
    ),
    character_error=Measure(title="character error rate", unit="%", better="lower", note="As the word error rate."),
    clap_score=Measure(
        title="CLAP score",
        better="higher",
        note="Cosine between CLAP's embeddings of the tags and of 10 s windows of the song, on average.",
    ),
    frechet_distance=Measure(
        title="Frechet audio distance",
        better="lower",
        note="Between Gaussians fitted to embeddings of 10 s windows of all songs and of the reference set. Too high "
        "where there are few windows; compare sets of one size by one model only.",
    ),
    kl_divergence=Measure(
        title="KL divergence",
        unit="nats",
        better="lower",
        note="Of the mean class probabilities of the reference set from those of the songs, by an audio classifier.",
    ),
    audiobox_enjoyment=Measure(title="Audiobox content enjoyment", better="higher", note="Audiobox-Aesthetics, 1-10."),
    audiobox_usefulness=Measure(title="Audiobox usefulness", better="higher", note="Audiobox-Aesthetics, 1-10."),
    audiobox_complexity=Measure(title="Audiobox complexity", note="Audiobox-Aesthetics, 1-10."),
    audiobox_quality=Measure(title="Audiobox quality", better="higher", note="Audiobox-Aesthetics, 1-10."),
    clamp3_score=Measure(
        title="CLaMP 3 score", better="higher", note="Cosine between CLaMP 3's embeddings of the prompt and the song."
    ),
)
