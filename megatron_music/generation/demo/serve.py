"""The server of the page: its folder, its address, its end."""

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from megatron_music.conversion.export import refuse_foreign_folder
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.files import write_json
from megatron_music.generation.hints import read_known_tags
from megatron_music.generation.song import Models, Studio

MARK = "demo.json"
VISITORS, SONGS, MATPLOTLIB = "visitors", "songs", "matplotlib"


def serve(
    models: Models,
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    known_tags: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serves the page until the process is told to end (Ctrl-C or SIGTERM).

    Args:
        folder: all that is written lies there: finished songs in ``songs``, which stay, and what visitors upload in
            ``visitors``, which goes after a day, at the end, and at the next start.
        port: 0 takes a free one.
        known_tags: a file of tags to offer.
        say: is given the page's address.

    Raises:
        InputError: a package, a model, the folder or the address can't be used.
    """
    if find_spec("gradio") is None:
        raise InputError("demo", "needs the package gradio", "pip install 'megatron-music[demo]'")
    tags = None if known_tags is None else list(dict.fromkeys(read_known_tags(known_tags)))
    port = free_port(host, port)
    refuse_foreign_folder(folder, MARK)
    studio = Studio(models, keep_networks=True)
    with workplace(folder) as folder:
        folder = folder.resolve()
        write_json(folder / MARK, {"stage1": str(models.stage1), "stage2": str(models.stage2)})
        _stay_inside(folder)
        shutil.rmtree(folder / VISITORS, ignore_errors=True)
        try:
            _run(studio, folder, host, port, tags, say)
        finally:
            shutil.rmtree(folder / VISITORS, ignore_errors=True)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0; raises InputError where it can't be listened on."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host}:{port}", f"can't be listened on ({reason})", "name another --port or --host"
        ) from None


def _stay_inside(folder: Path) -> None:
    """Sets where Gradio and matplotlib write, and that nothing asks other machines, before they are imported."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder / VISITORS),
        "GRADIO_EXAMPLES_CACHE": str(folder / VISITORS / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        # Gradio asks its own server whether it is there; a proxy would be asked in its place.
        "NO_PROXY": "*",
        "no_proxy": "*",
        "MPLCONFIGDIR": str(folder / MATPLOTLIB),
        # Gradio hands out what its functions return from the folder for temporary files.
        "TMPDIR": str(folder),
    }
    tempfile.tempdir = None


def _run(
    studio: Studio, folder: Path, host: str, port: int, known_tags: list[str] | None, say: Callable[[str], None]
) -> None:
    from matplotlib.font_manager import findfont
    from starlette.middleware import Middleware

    from megatron_music.generation.demo.guard import Guard
    from megatron_music.generation.demo.page import MOST_UPLOAD_MB, STYLE, THEME, Page
    from megatron_music.generation.demo.song import Visitors

    findfont("DejaVu Sans")  # makes matplotlib's list of fonts, and not while the first visitor waits
    visitors = Visitors()
    page = Page(studio, folder / SONGS, known_tags, visitors)
    # Files are counted one by one; around them stands a little more.
    guard = Middleware(Guard, most_upload_bytes=(MOST_UPLOAD_MB + 1) * 2**20)
    told_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_end.set())
    _, address, _ = page.blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        inbrowser=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        footer_links=[],
        max_file_size=f"{MOST_UPLOAD_MB}mb",
        app_kwargs={"middleware": [guard]},
        _frontend=False,  # or it asks itself for its page, and gives up where that takes 3 s
        theme=THEME,
        css=STYLE,
    )
    say(f"the page is at {address}; Ctrl-C ends it; songs go to {folder / SONGS}")
    try:
        told_to_end.wait()
    finally:
        visitors.stop()
        page.blocks.close(verbose=False)
