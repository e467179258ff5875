"""The page of `evaluate listen`, served by the verb in a process of its own and used in Chromium."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from chromium import PATIENCE_MS, chromium

from megatron_music.audio.files import write_audio
from megatron_music.evaluation.listening.answers import answers_of, read_answers
from megatron_music.evaluation.listening.study import ASPECTS, Study

SECRETS = (b"zebra", b"quagga", b"hidden-song")
"""What no rater may see: systems' folders and songs' names."""


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    folder: Path


def start(folder, *arguments):
    source = Path(__file__).resolve().parents[3]
    verb = [sys.executable, "-m", "megatron_music", "evaluate", "listen"]
    process = subprocess.Popen(
        [*verb, *map(str, arguments), "--out", folder, "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    said = process.stdout.readline()
    address = re.match(r"listen at http://127\.0\.0\.1:(\d+)/; Ctrl-C ends it; answers go to ", said)
    if not address:
        process.kill()
        pytest.fail(f"the server said {said!r}")
    return Server(process, int(address[1]), folder)


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    root = tmp_path_factory.mktemp("songs")
    for place, name in enumerate(("zebra-7b", "quagga")):
        for n in range(3):
            pitch = 220 * (1 + place) + 50 * n
            samples = 0.2 * np.sin(2 * np.pi * pitch * np.arange(3 * 8000) / 8000).astype(np.float32)
            write_audio(root / name / f"hidden-song{n}.wav", samples, 8000)
            (root / name / f"hidden-song{n}.txt").write_text("[verse]\nla <b>la</b>\n")
    return [root / "zebra-7b", root / "quagga"]


@pytest.fixture(scope="module")
def server(systems, tmp_path_factory):
    started = start(tmp_path_factory.mktemp("test") / "listening", *systems)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


def next_of(server, rater):
    return json.loads(ask(server, "GET", f"/next?rater={rater}")[1])


def post(server, body, **headers):
    return ask(server, "POST", "/answers", body, {"Content-Type": "application/json"} | headers)


def answer_to(state, choice="a"):
    choices = {aspect["name"]: choice for aspect in state["aspects"]}
    heard = {"a": 3.0, "b": 2.0}
    return {"rater": state["rater"], "pair": state["pair"], "choices": choices, "heard_s": heard}


def test_nothing_that_is_served_names_a_system_or_a_song(server):
    state = next_of(server, "spy")
    for path in ("/", "/listen.js", "/listen.css", "/next", "/next?rater=spy", state["a"], state["b"]):
        status, content, headers = ask(server, "GET", path)
        assert status == 200 and headers["Cache-Control"] == "no-store"
        for secret in SECRETS:
            assert secret not in content and secret not in str(headers).encode()
    assert re.fullmatch(r"/clips/[0-9a-f]{32}\.flac", state["a"]) and len(state["a"]) == len(state["b"])
    clips = [(server.folder / path[1:]).read_bytes() for path in (state["a"], state["b"])]
    assert clips[0][:4] == b"fLaC" and ask(server, "GET", state["a"])[1] == clips[0]
    # Of metadata, FLAC's stream information and libFLAC's own name are there, the same in both.
    assert clips[0][42:90] == clips[1][42:90]


def test_a_player_may_ask_for_a_part_of_a_clip(server):
    path = next_of(server, "seeker")["a"]
    whole = (server.folder / path[1:]).read_bytes()
    size = len(whole)
    for asked, first, last in (("bytes=0-9", 0, 9), ("bytes=100-", 100, size - 1), ("bytes=-7", size - 7, size - 1),
                               (f"bytes=5-{size + 99}", 5, size - 1)):  # fmt: skip
        status, content, headers = ask(server, "GET", path, headers={"Range": asked})
        assert (status, content) == (206, whole[first : last + 1])
        assert headers["Content-Range"] == f"bytes {first}-{last}/{size}"
    for asked in (f"bytes={size}-", "bytes=-0"):
        status, content, headers = ask(server, "GET", path, headers={"Range": asked})
        assert (status, content, headers["Content-Range"]) == (416, b"", f"bytes */{size}")
    for asked in ("bytes=a-b", "lines=1-2"):
        assert ask(server, "GET", path, headers={"Range": asked})[:2] == (200, whole)
    status, content, headers = ask(server, "HEAD", path)
    assert (status, content, headers["Content-Length"]) == (200, b"", str(size))


def test_files_outside_the_clips_are_not_served(server):
    inside = [server.folder / name for name in ("study.json", "answers.jsonl", ".lock")]
    assert inside[0].is_file()
    for path in (*inside, "/etc/passwd", "../study.json", "../../study.json", f"{'0' * 32}.flac"):
        for form in (str(path), quote(str(path), safe=""), quote(quote(str(path), safe=""), safe="")):
            for door in ("/", "/clips/", "/clips/../", "/clips/..%2f", "//", "/page/"):
                status, content, _ = ask(server, "GET", door + form)
                assert status in (404, 421), door + form
                assert b"root:" not in content and not any(secret in content for secret in SECRETS)


def test_only_the_page_itself_can_answer_and_not_much(server):
    state = next_of(server, "attacker")
    body = json.dumps(answer_to(state))
    own = {"Content-Type": "application/json"}
    for headers, status in (
        ({"Content-Type": "text/plain"}, 403),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 403),
        (own | {"Origin": "http://evil.example"}, 403),
        (own | {"Origin": "null"}, 403),
        (own | {"Host": "evil.example"}, 421),
        (own | {"Host": f"evil.example:{server.port}"}, 421),
        (own | {"Content-Length": str(16_385)}, 413),
        (own | {"Content-Length": "9" * 30}, 413),
        (own | {"Content-Length": "-1"}, 411),
    ):
        assert ask(server, "POST", "/answers", body, headers)[0] == status, headers
    assert post(server, body + " " * 20_000)[0] == 413
    chunked = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    assert ask(server, "POST", "/answers", "0\r\n\r\n", chunked)[0] == 411
    assert ask(server, "POST", "/next", body, own)[0] == 404
    assert ask(server, "GET", "/", headers={"Host": "evil.example"})[0] == 421
    assert ask(server, "GET", "/", headers={"Host": "["})[0] == 400
    assert ask(server, "GET", "/", headers={"Host": f"localhost:{server.port}"})[0] == 200
    policy = ask(server, "GET", "/")[2]["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    whole = answer_to(state)
    for wrong in (
        "junk", "[]", "[" * 5000,
        json.dumps(whole | {"pair": "0" * 32}),
        json.dumps(whole | {"rater": " "}),
        json.dumps(whole | {"rater": "x" * 61}),
        json.dumps(whole | {"rater": "a\u0000b"}),
        json.dumps(whole | {"choices": {"overall": "a"}}),
        json.dumps(whole | {"choices": whole["choices"] | {"more": "a"}}),
        json.dumps(whole | {"choices": dict.fromkeys(whole["choices"], "c")}),
        json.dumps(whole | {"heard_s": {"a": 1.0, "b": 0.0}}),
        json.dumps(whole | {"heard_s": {"a": 1.0}}),
        json.dumps(whole | {"more": 1}),
    ):  # fmt: skip
        assert post(server, wrong)[0] in (400, 404), wrong
    assert all(answer.rater != "attacker" for answer in read_answers(server.folder))
    assert next_of(server, "attacker") == state
    # The same from the page itself is taken.
    assert post(server, body, Origin=f"http://127.0.0.1:{server.port}")[0] == 200
    # Sent again, as by another window, it changes nothing.
    again = json.loads(post(server, json.dumps(answer_to(state, "b")))[1])
    assert again["done"] == 1
    (kept,) = [answer for answer in read_answers(server.folder) if answer.rater == "attacker"]
    assert set(kept.choices.values()) == {"a"}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


class Rater:
    """A person with a browser of their own; nothing but the server may be asked for anything."""

    def __init__(self, browser, server, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.asked, self.said = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.goto(f"http://127.0.0.1:{server.port}/")
        self.origin = f"http://127.0.0.1:{server.port}/"

    def begin(self, name):
        self.page.fill("#name", name)
        self.page.click("#who button")
        self.page.wait_for_selector("#pair:not([hidden]), #end:not([hidden])")

    def hear_both(self):
        for side in ("a", "b"):
            length, ends = self.page.evaluate(HEAR, side)
            assert length == pytest.approx(3.0, abs=0.1) and ends > 0
        assert self.page.evaluate("document.getElementById('a').paused")

    def choose(self, *places):
        """One of A, B and no difference for each question."""
        for number, place in enumerate(places):
            self.page.locator(".choices").nth(number).locator("label").nth(place).click()

    def go_on(self):
        before = self.progress
        self.page.click("#next")
        self.page.wait_for_function("before => document.getElementById('progress').textContent !== before", arg=before)

    @property
    def progress(self):
        return self.page.inner_text("#progress")

    def leave(self):
        self.context.close()
        assert self.said == [] and all(url.startswith((self.origin, "data:")) for url in self.asked)


HEAR = """side => new Promise((done, fail) => {
    const audio = document.getElementById(side);
    audio.muted = true;
    audio.addEventListener("error", () => fail(audio.error.message));
    const told = () => audio.currentTime > 0.2 && done([audio.duration, audio.seekable.end(0)]);
    audio.addEventListener("timeupdate", told);
    audio.play();
})"""


def test_a_rater_hears_answers_leaves_and_goes_on_even_after_a_crash(systems, tmp_path, browser):
    folder = tmp_path / "listening"
    server = start(folder, *systems, "--pairs", "2")
    ann = Rater(browser, server)
    ann.begin(" Ann  Lee ")
    assert ann.progress == "Ann Lee: pair 1 of 2"
    assert ann.page.inner_text("#words") == "[verse]\nla <b>la</b>"
    assert ann.page.locator("fieldset").count() == len(ASPECTS) == 6
    assert ann.page.is_disabled("#next")
    assert ann.page.inner_text("#todo") == "Still to do: hear A and B, answer 6 more questions."
    ann.choose(0, 1, 2, 0, 1)
    ann.hear_both()
    assert ann.page.inner_text("#todo") == "Still to do: answer one more question."
    ann.choose(0, 1, 2, 0, 1, 0)
    shown = [ann.page.get_attribute(f"#{side}", "src") for side in ("a", "b")]
    # Another rater listens at the same time, in another order of their own.
    bob = Rater(browser, server)
    bob.begin("bob")
    bob.hear_both()
    bob.choose(*[2] * 6)
    bob.go_on()
    ann.go_on()
    assert (ann.progress, bob.progress) == ("Ann Lee: pair 2 of 2", "bob: pair 2 of 2")
    waiting = ann.page.get_attribute("#a", "src")
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    ann.context.close()
    bob.context.close()

    server = start(folder, "--pairs", "2")
    try:
        ann = Rater(browser, server, viewport={"width": 400, "height": 800}, color_scheme="dark")
        ann.begin("Ann Lee")
        assert ann.progress == "Ann Lee: pair 2 of 2" and ann.page.get_attribute("#a", "src") == waiting
        assert ann.page.evaluate("document.documentElement.scrollWidth") == 400
        ann.hear_both()
        ann.choose(*[1] * 6)
        ann.go_on()
        assert ann.progress == "Ann Lee: 2 of 2 pairs" and ann.page.is_visible("#end")
        ann.leave()
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0

    lines = read_answers(folder)
    assert [line.rater for line in lines] == ["bob", "Ann Lee", "Ann Lee"]
    assert list(lines[1].choices.values()) == ["a", "b", "tie", "a", "b", "a"]
    assert [f"/clips/{token}.flac" for token in (lines[1].a, lines[1].b)] == shown
    assert all(0.2 < seconds < 3.2 for line in lines for seconds in line.heard_s.values())
    study = Study.read(folder)
    said = answers_of(study, lines)
    assert set(said[0].preferences.values()) == {0}
    system = {clip.token: clip.system for clip in study.clips}
    better = system[lines[2].b]
    assert said[2].preferences["overall"] == (1 if better == said[2].first else -1)


def test_a_named_rater_is_not_asked_and_a_taken_port_is_one_line(server, systems, tmp_path):
    named = start(tmp_path / "listening", *systems, "--rater", "cho")
    try:
        assert json.loads(ask(named, "GET", "/next")[1])["rater"] == "cho"
        assert ask(named, "GET", "/next?rater=dan")[0] == 400
    finally:
        named.process.kill()
        named.process.wait()
    assert json.loads(ask(server, "GET", "/next")[1]) == {"rater": None}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = ["evaluate", "listen", "--out", str(server.folder), "--port", str(taken.getsockname()[1])]
        source = str(Path(__file__).resolve().parents[3])
        done = subprocess.run([sys.executable, "-m", "megatron_music", *command], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": source})  # fmt: skip
    assert done.returncode == 2 and "can't be listened on (Address already in use)" in done.stderr
    assert done.stderr.count("\n") == 1
