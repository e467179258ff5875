"""The page of `demo`, served by the verb in a process of its own and used in Chromium."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from chromium import PATIENCE_MS, chromium

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import write_audio
from megatron_music.generation.request import SongRequest
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.song import Models, Studio

LYRICS = "[verse]\nla la la\n\n[chorus]\nsing with me\n"
TEXTS = ("[verse]\nla la la\n\n", "[chorus]\nsing with me\n\n")
RECORD_STATUS = """() => {
    const status = document.querySelector("#status");
    window.said = [];
    const record = () => window.said.push(status.innerText.replace(/\\s+/g, " "));
    new MutationObserver(record).observe(status, {subtree: true, childList: true, characterData: true});
}"""


@dataclass
class Server:
    """The process of the verb, where it listens, and folders that it has no business in."""

    process: subprocess.Popen
    port: int
    models: Models
    folder: Path
    elsewhere: dict[str, Path]

    def songs(self) -> list[Path]:
        return sorted((self.folder / "songs").glob("*"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, write_model):
    root = tmp_path_factory.mktemp("demo")
    seconds = np.arange(32000, dtype=np.float32) / 16000
    tones = [np.sin(2 * np.pi * pitch * seconds).astype(np.float32) * 0.3 for pitch in (110, 330, 880, 1760)]
    codec = EmbeddedCodec.fit(tones, codebooks=4, codebook_size=16)
    models = Models(write_model(root / "one", 4096), write_model(root / "two", 128, seed=1))
    for folder in (models.stage1, models.stage2):
        codec.save(folder / "codec")
    (root / "tags.txt").write_text("pop\nfemale\nairy vocal\n")
    elsewhere = {name: root / name for name in ("home", "work", "tmp")}
    for path in elsewhere.values():
        path.mkdir()
    arguments = ["--stage1", models.stage1, "--stage2", models.stage2, "--folder", root / "out", "--port", "0"]
    source = Path(__file__).resolve().parents[2]
    environment = {"HOME": elsewhere["home"], "TMPDIR": elsewhere["tmp"], "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    environment |= {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": root, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_music", "demo", *arguments, "--known-tags", root / "tags.txt"],
        cwd=elsewhere["work"],
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = process.stdout.readline()
    address = re.match(r"the page is at http://127\.0\.0\.1:(\d+)/; Ctrl-C ends it", said)
    try:
        assert address, said
        yield Server(process, int(address[1]), models, root / "out", elsewhere)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(server, browser):
    """Opens the page as another visitor: ``visit()``; no visitor may have asked another host for anything."""
    pages, asked = [], []

    def open_page():
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{server.port}/")
        for part in ("#generate", "#status"):
            page.wait_for_selector(part, state="attached")
        page.evaluate(RECORD_STATUS)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    foreign = [url for url in asked if not re.match(rf"(blob:)?http://127\.0\.0\.1:{server.port}/|data:", url)]
    assert asked and foreign == []


def fill(page, lyrics=LYRICS, tags=("pop",), **numbers):
    if {"min_new_tokens", "max_new_tokens"} & set(numbers):
        page.click("#settings button")
    page.fill("#lyrics textarea", lyrics)
    for tag in tags:
        page.fill("#tags input", tag)
        page.keyboard.press("Enter")
    # Gradio gives fields that have just appeared their first values once more: what was written before is lost.
    inputs = {f"#{name} input": str(value) for name, value in numbers.items()}
    while lost := [name for name, value in inputs.items() if page.input_value(name) != value]:
        for name in lost:
            page.fill(name, inputs[name])
            page.keyboard.press("Tab")


def until_said(page, pattern):
    page.wait_for_function("pattern => window.said.some(line => new RegExp(pattern).test(line))", arg=pattern)


def new_songs(server, before):
    return [path for path in server.songs() if path not in before]


def test_a_song_is_sung_heard_seen_and_downloaded(server, visit, tmp_path):
    before, page = server.songs(), visit()
    fill(page, tags=("airy vocal", "popp"), seed=7, min_new_tokens=60, max_new_tokens=120)
    page.click("#generate")
    page.wait_for_selector("#status .done")
    (song,) = new_songs(server, before)
    record = json.loads((song / "song.json").read_text())
    frames = record["frames"]
    assert page.inner_text("#status .done") == f"2 sections, {frames / 50:.1f} s."
    assert page.inner_text("#status .hint") == "hint: tags: 'popp' is not among the known ones; did you mean 'pop'?"

    said = " ".join(page.evaluate("window.said"))
    for section in (1, 2):
        assert re.search(rf"stage 1: section {section} of 2, \d+\.\d s sung", said)
    assert "stage 2: frame " in said

    # Exactly what the same models sing without a page.
    studio = Studio(replace(server.models, device="cpu"))
    settings = SamplingSettings(min_new_tokens=60, max_new_tokens=120)
    (alone,) = studio.make([SongRequest("airy vocal popp", TEXTS, seed=7)], settings)
    assert record == alone.record

    for name in ("mix", "vocals", "accompaniment"):
        held = soundfile.info(song / f"{name}.wav")
        assert held.frames == frames * 320
        player = page.wait_for_selector(f"#{name} audio[src^=blob]", state="attached")
        page.wait_for_function("player => player.duration > 0", arg=player)
        assert player.evaluate("player => player.duration") == pytest.approx(held.duration, abs=1e-3)
        bytes_held = player.evaluate(
            "async player => [...new Uint8Array(await (await fetch(player.src)).arrayBuffer())].length"
        )
        assert bytes_held == (song / f"{name}.wav").stat().st_size
    sizes = {
        name: page.wait_for_selector(f"#{name} img").evaluate("image => image.decode().then(() => image.naturalWidth)")
        for name in ("piano_roll", "spectrogram")
        if (song / f"{name}.png").exists()
    }
    assert sizes["spectrogram"] == 990 and set(sizes.values()) == {990}

    links = page.locator("#files a[download]")
    names = [links.nth(index).get_attribute("download") for index in range(links.count())]
    assert names == ["mix.wav", "vocals.wav", "accompaniment.wav", "song.json"]
    for index, name in enumerate(names):
        with page.expect_download() as download:
            links.nth(index).click()
        download.value.save_as(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (song / name).read_bytes()


def test_known_tags_are_offered_and_bad_prompts_end_in_their_line(server, visit):
    before, page = server.songs(), visit()
    page.click("#tags input")
    page.wait_for_selector("li[role=option]")
    offered = page.locator("li[role=option]").evaluate_all("tags => tags.map(tag => tag.ariaLabel)")
    assert offered == ["pop", "female", "airy vocal"]
    page.keyboard.press("Escape")
    for fields, line in (
        ({"tags": ()}, "tags: there are none; name genre, instruments, mood, vocal gender and timbre"),
        ({"segments": -1}, "segments: -1 segments make no song; ask for at least 1"),
        (
            {"lyrics": "[ti:la]", "tags": (), "segments": 0},
            "lyrics: holds no lyrics; write sections such as [verse] followed by lines of lyrics",
        ),
        (
            {"lyrics": LYRICS + "<b>&<EOA>", "tags": ()},
            "lyrics: section 2: holds the special token <EOA>; take it out",
        ),
        (
            {"tags": (), "max_new_tokens": 0},
            "Most tokens a section: 0 is outside 2 to 2147483648; choose a value in this range",
        ),
    ):
        fill(page, **fields)
        page.click("#generate")
        page.locator("#status").get_by_text(line, exact=True).wait_for()
    assert new_songs(server, before) == []


def test_uploads_are_limited_in_size_and_type(server, visit, tmp_path):
    before, page = server.songs(), visit()
    seconds = np.arange(24000, dtype=np.float32) / 16000
    write_audio(tmp_path / "humming.wav", np.sin(2 * np.pi * 330 * seconds).astype(np.float32) * 0.3, 16000)
    write_audio(tmp_path / "silence.wav", np.zeros(24000, np.float32), 16000)
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    with open(tmp_path / "long.wav", "wb") as file:
        file.truncate(64 * 2**20 + 1)
    page.click("#reference button")
    for name, line in (
        ("long.wav", 'File(s) exceed the maximum allowed size of 64.0 Mb: "long.wav"'),
        ("page.html", "Invalid file type: page.html. Only .wav, .flac, .ogg, .mp3, .m4a allowed."),
    ):
        page.set_input_files("#first input[type=file]", tmp_path / name)
        page.wait_for_selector(f".toast-body:has-text('{line}')" if "'" not in line else f"text={line}")
    assert [path for path in server.folder.rglob("*") if path.name in ("long.wav", "page.html")] == []

    fill(page, min_new_tokens=2, max_new_tokens=8)
    page.set_input_files("#first input[type=file]", tmp_path / "silence.wav")
    page.wait_for_selector("#first >> text=silence")
    page.click("#generate")
    assert page.inner_text("#status .error") == "silence.wav: is silent (-200 dBFS); name a file that sounds"
    page.click("#first [aria-label=Clear]")
    page.set_input_files("#first input[type=file]", tmp_path / "humming.wav")
    page.wait_for_selector("#first >> text=humming")
    page.click("#generate")
    page.wait_for_selector("#status .done")
    (song,) = new_songs(server, before)
    reference = json.loads((song / "song.json").read_text())["request"]["reference"]
    assert reference["source"] == "humming.wav, 0 s to 1.5 s"
    expected = Studio(server.models).reference([tmp_path / "humming.wav"])
    assert reference["tracks"] == [codes_T.tolist() for codes_T in expected.tracks]


LONG = {"min_new_tokens": 100_000, "max_new_tokens": 100_000}  # hours
SHORT = {"min_new_tokens": 2, "max_new_tokens": 8}


def test_stop_ends_the_song(server, visit):
    before, page = server.songs(), visit()
    fill(page, **LONG)
    page.click("#generate")
    until_said(page, r"section 1 of 2, [1-9]")
    page.click("#stop")
    page.wait_for_selector("#status >> text=Stopped.")
    # One song is sung at a time: another visitor's is only reached where the first has ended.
    other = visit()
    fill(other, **SHORT)
    other.click("#generate")
    other.wait_for_selector("#status .done")
    assert len(new_songs(server, before)) == 1


def test_visitors_wait_for_each_other_and_a_closed_page_ends_its_song(server, visit):
    before, first, second, third = server.songs(), visit(), visit(), visit()
    fill(first, **LONG)
    first.click("#generate")
    until_said(first, r"section 1 of 2, [1-9]")
    for page, seed in ((second, 1), (third, 2)):
        fill(page, seed=seed, **SHORT)
        page.click("#generate")
        until_said(page, r"queue: \d")
    third.click("#stop")
    third.wait_for_selector("#status >> text=Stopped.")
    assert new_songs(server, before) == []
    first.close()
    second.wait_for_selector("#status .done")
    (song,) = new_songs(server, before)
    assert json.loads((song / "song.json").read_text())["request"]["seed"] == 1


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_files_outside_what_visitors_share_are_not_served(server):
    secret = server.elsewhere["work"].parent / "tags.txt"
    inside = server.folder / "demo.json"
    visitors = server.folder / "visitors"
    for path in (secret, inside, visitors / "../demo.json", visitors / ".." / ".." / "tags.txt", "/etc/passwd"):
        for form in (str(path), quote(str(path)), quote(str(path), safe=""), quote(quote(str(path), safe=""))):
            for door in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/static/.."):
                status, content = ask(server, "GET", door + form)
                assert status in (403, 404), door + form
                assert b"airy" not in content and b"stage1" not in content and b"root:" not in content
    for address in ("http://127.0.0.1:9/x", "https://example.com/x", "//example.com/x", "file:///etc/passwd"):
        for door in ("/gradio_api/file=", "/gradio_api/proxy="):
            assert ask(server, "GET", door + address)[0] in (403, 404)


def test_doors_that_the_page_does_not_use_are_closed_and_bodies_limited(server):
    for door in ("/gradio_api/info", "/gradio_api/call/_sing", "/docs", "/monitoring", "/gradio_api/vibe-edit", "/x"):
        assert ask(server, "GET", door) == ask(server, "POST", door, "{}") == (404, b"this page has no such door")
    for door, limit in (("/gradio_api/upload", "65"), ("/gradio_api/queue/join", "1")):
        status, line = ask(server, "POST", door, None, {"Content-Length": str(66 * 2**20)})
        assert (status, line.decode()) == (413, f"more than the {limit} MB that may be sent at once")
    # Of a length that is not told, an upload is refused unread, and an event as soon as it is too long.
    chunked = {"Transfer-Encoding": "chunked"}
    assert ask(server, "POST", "/gradio_api/upload", "0\r\n\r\n", chunked)[0] == 411
    longer = 2**20 + 1
    body = f"{longer:x}\r\n{'x' * longer}\r\n0\r\n\r\n"
    assert ask(server, "POST", "/gradio_api/queue/join", body, chunked)[0] == 413
    policy = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    policy.request("GET", "/")
    assert policy.getresponse().headers["content-security-policy"].startswith("default-src 'self' ")


def test_events_can_name_no_file_but_an_upload(server, visit):
    """What a page sends, sent again with another file in it."""
    page, sent = visit(), []
    page.on("request", lambda request: "queue/join" in request.url and sent.append(request.post_data_json))
    fill(page, lyrics="")
    page.click("#generate")
    page.wait_for_selector("#status .error, #status .done")
    (event,) = sent
    secret = server.elsewhere["work"].parent / "secret.wav"
    write_audio(secret, np.ones(16000, np.float32), 16000)
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    place = [index for index, value in enumerate(event["data"]) if value is None][0]
    for path in (str(secret), f"{server.folder}/visitors/../../secret.wav", "http://127.0.0.1:9/x.wav", "//x/y.wav"):
        event["data"][place] = {"path": path, "meta": {"_type": "gradio.FileData"}}
        status, _ = ask(
            server, "POST", "/gradio_api/queue/join", json.dumps(event), {"Content-Type": "application/json"}
        )
        assert status == (400 if "//" in path else 200), path
    done = page.evaluate(
        "async hash => await (await fetch('/gradio_api/queue/data?session_hash=' + hash)).text()", event["session_hash"]
    )
    messages = [json.loads(line[6:]) for line in done.splitlines() if line.startswith("data: ")]
    completed = [message for message in messages if message["msg"] == "process_completed"]
    assert [message["success"] for message in completed] == [False, False]
    assert [path for path in server.folder.rglob("*") if path.is_file()] == files


def test_nothing_lies_outside_the_folder_and_little_stays(server):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    for folder in server.elsewhere.values():
        assert list(folder.rglob("*")) == []
    assert sorted(path.name for path in server.folder.iterdir()) == [".lock", "demo.json", "matplotlib", "songs"]
