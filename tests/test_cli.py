"""What --help says: an option has one text everywhere, a value has a name, examples parse."""
import re
import shlex

COMMANDS = ("build", "quantize", "calibrate", "rewrite", "compile", "export", "compare", "perf", "inspect", "devices")
# Options that mean something of their own in these commands.
OWN = {"-o,--output", "--samples", "--min-sqnr"}


def options(octavo, command):
    """{names: (value, help)} of the options that take one, flags with value ''."""
    found = {}
    text = octavo(command, "--help").out
    for names, value, words in re.findall(r"^  ((?:-\w,)?--[a-z-]+)((?: [^ ]+)*?)(?:  +|\n +)(.+)$", text, re.M):
        found[names] = (value.strip(), words.strip())
    assert "--json" in found and "-h,--help" in found, text
    return found


def test_an_option_has_one_text_everywhere(octavo):
    seen = {}
    for command in COMMANDS:
        for names, text in options(octavo, command).items():
            if names in OWN:
                continue
            assert seen.setdefault(names, text) == text, (command, names)
    assert len(seen) > 50, len(seen)


def test_examples_use_options_that_there_are(octavo):
    for command in COMMANDS:
        known = {name for names in options(octavo, command) for name in names.split(",")}
        lines = re.findall(r"^  (octavo .+)$", octavo(command, "--help").out, re.M)
        assert lines, command
        for line in lines:
            words = shlex.split(line)
            assert words[1] == command, line
            assert {w for w in words if re.fullmatch(r"-\w|--[a-z-]+", w)} <= known, line


def test_a_flag_is_refused_a_value_and_a_value_has_a_name(octavo):
    for command in COMMANDS:
        for names, (value, _) in options(octavo, command).items():
            flag = value == ""
            name = names.split(",")[-1]
            if name in ("--help", "--list", "--list-operators"):
                continue
            result = octavo(command, name + ("=x" if flag else ""), code=2)
            assert ("takes no value" if flag else "needs a value") in result.error, (command, name, result.err)
