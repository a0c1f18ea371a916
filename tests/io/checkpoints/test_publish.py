"""Uploads to the hub, against a hub of our own in memory: what goes there, in which order, what is refused when."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from hf_heads import HeadsError
from hf_heads.cli.options import add_push, push
from hf_heads.io.checkpoints.publish import push_folder
from tests.support.cli import Outcome, Run

OPTIONS = ("--to", "low-rank", "--rank", 8, "--calibrate", "none")


class Hub:
    """The hub as `HfApi` shows it: remembers what it was asked, fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, str | None] = {}
        self.failures: dict[str, BaseException] = {}
        self.who: dict[str, Any] = {"name": "user", "auth": {"accessToken": {"role": "write"}}}
        self.token: str | None = None

    def __call__(self, token: str | None = None) -> Hub:
        self.token = token
        return self

    def _called(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self.failures:
            raise self.failures[name]

    def whoami(self) -> dict[str, Any]:
        self._called("whoami")
        return self.who

    def create_repo(self, repo_id: str, **arguments: Any) -> RepoUrl:
        self._called("create_repo", repo_id=repo_id, **arguments)
        return RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else 'user/' + repo_id}")

    def create_branch(self, repo_id: str, **arguments: Any) -> None:
        self._called("create_branch", repo_id=repo_id, **arguments)

    def upload_folder(self, *, folder_path: Path, **arguments: Any) -> None:
        self._called("upload_folder", folder_path=folder_path, **arguments)
        paths = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        self.files = {
            str(path.relative_to(folder_path)): path.read_text() if path.suffix in (".md", ".json") else None
            for path in paths
        }

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_stored")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return made


def http_error(status: int, text: str) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(text, response=response)


@pytest.fixture
def convert(run: Run, bert_folder: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def call(*more: object) -> Outcome:
        return run("convert", bert_folder, *OPTIONS, "--output", tmp_path / "out", *more)

    return call


def check_refused_before_any_work(found: Outcome, output: Path, *words: str) -> None:
    assert found.code == 1, found.out
    (line,) = found.err.strip().splitlines()
    for word in words:
        assert word in line, line
    assert not output.exists()


def test_a_conversion_is_uploaded_whole_into_a_repository_made_first(convert: Callable[..., Outcome], hub: Hub):
    found = convert("--push-to-hub", "user/small-bert", "--json")
    assert found.code == 0, found.err
    assert found.json["url"] == "https://huggingface.co/user/small-bert"
    assert hub.names == ["whoami", "create_repo", "upload_folder"]
    created, uploaded = hub.calls[1][1], hub.calls[2][1]
    assert created == {"repo_id": "user/small-bert", "repo_type": "model", "private": False, "exist_ok": True}
    assert uploaded["repo_id"] == "user/small-bert" and uploaded["commit_message"]
    assert {
        *("config.json", "model.safetensors", "README.md", "heads_report.json", "modeling_heads_bert.py"),
        *("tokenizer.json", "tokenizer_config.json"),
    } <= set(hub.files)
    assert not any(Path(name).name.startswith(".") for name in hub.files)
    assert set(uploaded["allow_patterns"]) == set(hub.files)  # all of it, and nothing that is put there later


def test_the_card_says_under_which_name_to_load(convert: Callable[..., Outcome], hub: Hub, tmp_path: Path):
    assert convert("--push-to-hub", "small-bert").code == 0
    card = hub.files["README.md"]
    assert (
        card is not None and 'AutoModelForMaskedLM.from_pretrained("user/small-bert", trust_remote_code=True)' in card
    )
    assert "PATH_OR_ID" not in card
    assert (tmp_path / "out" / "README.md").read_text() == card


def test_without_the_option_the_hub_is_left_alone(convert: Callable[..., Outcome], hub: Hub):
    found = convert("--json")
    assert found.code == 0 and "url" not in found.json
    assert hub.calls == []


def test_private_makes_the_repository_private(convert: Callable[..., Outcome], hub: Hub):
    found = convert("--push-to-hub", "user/small-bert", "--private")
    assert found.code == 0 and "uploaded to https://huggingface.co/user/small-bert" in found.out
    assert hub.calls[1][1]["private"] is True
    assert convert("--private", "--overwrite").code == 2


def test_weights_of_an_earlier_upload_do_not_stay_beside_the_new_ones(hub: Hub, bert_folder: Path):
    from huggingface_hub.utils import filter_repo_objects

    push_folder(bert_folder, "user/one")
    names = [
        *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("config.json", "tokenizer.json", "README.md", "1_Pooling/config.json"),
    ]
    stale = filter_repo_objects(names, allow_patterns=hub.calls[-1][1]["delete_patterns"])
    assert list(stale) == names[:3]


def test_a_branch_a_message_and_a_token_of_ones_own(hub: Hub, bert_folder: Path):
    url = push_folder(bert_folder, "user/one", revision="rank-8", message="rank 8", token="hf_own")
    assert url == "https://huggingface.co/user/one"
    assert hub.names == ["create_repo", "create_branch", "upload_folder"]
    assert hub.calls[1][1] == {"repo_id": "user/one", "branch": "rank-8", "exist_ok": True}
    assert (hub.calls[2][1]["revision"], hub.calls[2][1]["commit_message"]) == ("rank-8", "rank 8")
    assert hub.token == "hf_own"


# Refusals: before the conversion, in one line.


@pytest.mark.parametrize("repo_id", ["a/b/c", "with space", ".dot", "two--dashes", "x" * 97, "", "name.git"])
def test_an_id_that_is_none_is_refused_before_the_conversion(
    convert: Callable[..., Outcome], hub: Hub, tmp_path: Path, repo_id: str
):
    check_refused_before_any_work(convert("--push-to-hub", repo_id), tmp_path / "out", f"cannot push to '{repo_id}'")
    assert hub.calls == []


def test_nobody_logged_in(convert: Callable[..., Outcome], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    found = convert("--push-to-hub", "user/one")
    check_refused_before_any_work(found, tmp_path / "out", "nobody is logged in", "`hf auth login`", "HF_TOKEN")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(401, "Invalid user token."), ("refuses the token", "Invalid user token", "hf auth login")),
        (http_error(429, "Rate limit."), ("refuses to answer", "Rate limit", "later")),
        (ConnectionError("no route"), ("cannot be reached", "ConnectionError", "leave out --push-to-hub")),
    ],
)
def test_a_token_or_a_hub_that_does_not_work(
    convert: Callable[..., Outcome], hub: Hub, tmp_path: Path, error: Exception, words: tuple[str, ...]
):
    hub.failures["whoami"] = error
    check_refused_before_any_work(convert("--push-to-hub", "user/one"), tmp_path / "out", *words)


def test_a_token_that_may_only_read(convert: Callable[..., Outcome], hub: Hub, tmp_path: Path):
    hub.who["auth"]["accessToken"]["role"] = "read"
    check_refused_before_any_work(convert("--push-to-hub", "user/one"), tmp_path / "out", "may only read", "`hf auth")


def test_offline(convert: Callable[..., Outcome], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    check_refused_before_any_work(convert("--push-to-hub", "user/one"), tmp_path / "out", "HF_HUB_OFFLINE")


# Failures after the conversion: the folder stays, and how to go on is said.


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
@pytest.mark.parametrize("error", [http_error(403, "Forbidden"), OSError("connection reset"), KeyboardInterrupt()])
def test_a_failed_upload_keeps_the_folder_and_says_how_to_go_on(
    convert: Callable[..., Outcome], hub: Hub, tmp_path: Path, step: str, error: BaseException
):
    hub.failures[step] = error
    output = tmp_path / "out"
    found = convert("--push-to-hub", "user/one", "--private")
    assert found.code == 1
    (line,) = found.err.strip().splitlines()
    assert f"'{output}' is complete" in line
    command = shlex.split(line.partition("`")[2].rstrip("`"))
    assert command == ["hf", "upload", "user/one", str(output), ".", "--private"]
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in output.iterdir()}
    assert "written to" in found.out and "uploaded" not in found.out


def test_the_command_to_go_on_with_is_one_that_hf_has():
    program = "from huggingface_hub.cli.hf import main; main()"
    found = subprocess.run([sys.executable, "-c", program, "upload", "--help"], capture_output=True, text=True)
    for word in ("REPO_ID", "LOCAL_PATH", "PATH_IN_REPO", "--private", "--revision"):
        assert word in found.stdout


def test_other_errors_of_a_push_are_heads_errors(hub: Hub, bert_folder: Path):
    hub.failures["upload_folder"] = RuntimeError("anything")
    with pytest.raises(HeadsError, match="RuntimeError: anything"):
        push_folder(bert_folder, "user/one")


def test_a_command_without_the_option_given_pushes_nothing(hub: Hub, tmp_path: Path):
    import argparse

    parser = argparse.ArgumentParser()
    add_push(parser)
    assert push(parser.parse_args([]), tmp_path) == {}
    assert hub.calls == []
