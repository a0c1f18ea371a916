"""Workflows, hooks and templates: they parse, and run the commands of `make test`."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

GITHUB = Path(".github")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def checks() -> list[str]:
    """The commands of `make test` before the tests themselves: those of `make lint`."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", Path("Makefile").read_text(), re.M)
    assert recipe is not None
    return re.findall(r"^\t\$\(BIN\)/(.*)$", recipe[1], re.M)


def test_hooks_and_workflow_run_the_checks_of_make_test():
    hooks = [hook["entry"] for hook in load(Path(".pre-commit-config.yaml"))["repos"][0]["hooks"]]
    steps = [step.get("run") for step in load(GITHUB / "workflows" / "ci.yml")["jobs"]["checks"]["steps"]]
    assert len(checks()) >= 4
    assert hooks == checks()
    assert steps[-len(hooks) :] == hooks


@pytest.mark.parametrize("path", sorted((GITHUB / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_have_triggers_and_jobs_with_steps(path: Path):
    workflow = load(path)
    assert True in workflow  # YAML 1.1 reads the key `on` as true
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_the_lowest_versions_are_those_of_pyproject():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    for package in ("transformers", "torch"):
        (lowest,) = (re.match(rf"{package}>=([\d.]+)", one) for one in project["dependencies"] if package in one)
        assert lowest is not None
        assert f"'{package}=={lowest[1]}.*'" in text
    assert f'"{project["requires-python"].removeprefix(">=")}"' in text


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_templates_are_forms(path: Path):
    form = load(path)
    if path.stem == "config":
        return
    assert form["name"] and form["description"]
    for part in form["body"]:
        assert part["type"] in ("markdown", "input", "textarea", "checkboxes", "dropdown")
        assert part["attributes"]


def release_notes() -> Any:
    spec = importlib.util.spec_from_file_location("release_notes", GITHUB / "release_notes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_releases_notes_are_its_section_and_wait_for_its_date():
    section = release_notes().section
    changelog = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- New.\n\n## 0.1.0 (2026-01-31)\n\n- First.\n"
    assert section(changelog, "0.1.0") == "- First."
    with pytest.raises(SystemExit, match="unreleased"):
        section(changelog, "0.2.0")
    with pytest.raises(SystemExit, match=r"no section '## 0\.3\.0"):
        section(changelog, "0.3.0")


def test_a_tag_that_is_not_the_version_is_refused():
    with pytest.raises(SystemExit, match="expected v"):
        release_notes().main("v99.0")
