"""The command completion: a script by which a shell completes commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

_BASH = """\
_hf_heads() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}} $before" in
{choices}
            *) case "${{COMP_WORDS[1]}}" in
{options}
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _hf_heads hf-heads
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
_SETUP = {
    "bash": 'eval "$(hf-heads completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(hf-heads completion zsh)" in ~/.zshrc, behind compinit',
    "fish": "hf-heads completion fish > ~/.config/fish/completions/hf-heads.fish",
}
Commands = dict[str, argparse.ArgumentParser]


def add_completion(commands: Any, build: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command completion; `build` makes the whole parser."""
    text = "print a script by which a shell completes commands"
    command = commands.add_parser("completion", help=text, description=f"{text[0].upper()}{text[1:]}.")
    help_text = "; ".join(f"{name}: {text}" for name, text in _SETUP.items())
    command.add_argument("shell", choices=tuple(_SETUP), help=help_text)
    command.set_defaults(run=_completion, parser=command, build=build)


def _completion(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    whole = options.build()
    (commands,) = (one for one in whole._actions if isinstance(one, argparse._SubParsersAction))
    found = {name: one for name, one in commands.choices.items()}
    print(_fish(found) if options.shell == "fish" else (_ZSH if options.shell == "zsh" else "") + _bash(found), end="")
    return 0


def _bash(commands: Commands) -> str:
    choices = [
        f'            "{name} {flag}") words="{" ".join(action.choices)}" ;;'
        for name, command in commands.items()
        for action in command._actions
        if action.choices
        for flag in action.option_strings
    ]
    options = [
        f'            {name}) words="{_alone(command)}"; [[ $word == -* ]] && words="{_flags(command)}" ;;'
        for name, command in commands.items()
    ]
    return _BASH.format(commands=" ".join(commands), choices="\n".join(choices), options="\n".join(options))


def _fish(commands: Commands) -> str:
    lines = [f"complete -c hf-heads -n __fish_use_subcommand -f -a {name}" for name in commands]
    for name, command in commands.items():
        for action in command._actions:
            for flag in action.option_strings:
                if flag.startswith("--"):
                    choices = f" -x -a '{' '.join(action.choices)}'" if action.choices else " -r" * (action.nargs != 0)
                    lines.append(f"complete -c hf-heads -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}{choices}")
    return "\n".join(lines) + "\n"


def _alone(command: argparse.ArgumentParser) -> str:
    """The words that may stand in a command without an option."""
    return " ".join(word for action in command._actions if not action.option_strings for word in action.choices or ())


def _flags(command: argparse.ArgumentParser) -> str:
    return " ".join(flag for action in command._actions for flag in action.option_strings if flag.startswith("--"))
