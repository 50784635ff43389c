#!/usr/bin/env python3
"""Refuses includes in src/ that break the order of the rooms.

    tools/check_layers.py [ROOT]

Four rules, each reported as FILE:LINE: what, one line each, exit status 1 when there is any:
  order    a room includes itself and rooms before it in ROOMS, never after; attention's kernel folders see less (KERNELS)
  edges    a file includes only what its CMake target declares in DEPENDS (directly or through another room)
  cycles   no header includes itself through others
  orphans  every .cc and .cu belongs to a target
"""

import re
import sys
from pathlib import Path

ROOMS = [
    "base",
    "tensor",
    "tokenizer",
    "kernels",
    "kv_cache",
    "attention",
    "models",
    "engine",
    "scheduler",
    "server",
    "cli",
]

# The attention kernels know no cache, model or engine. Their tests (*_test.cc, testing/) may use all of attention/, to
# compare them.
KERNELS = ("attention/reference", "attention/cpu", "attention/cuda")
KERNELS_SEE = ("base/", "tensor/", "attention/attention_params.h")

# Rooms that those after them enter by one door: room -> (who is bound, headers that they may include).
DOORS = {"scheduler": (("server", "cli"), ("scheduler/scheduler.h",))}

ISAS = ("portable", "avx2", "avx512", "avx512bf16")
SOURCES = (".h", ".inl", ".cuh", ".cc", ".cu")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
COMMAND = re.compile(
    r"\b(set|onepass_library|onepass_test|onepass_isa_sources|add_executable|add_library|target_link_libraries)\s*\(([^)]*)\)"
)
KEYWORDS = {"SOURCES", "DEPENDS", "LIBRARIES", "TESTS", "TEST_DEPENDS"}


class Target:
    def __init__(self, name, folder):
        self.name = name  # as in DEPENDS: attention/cpu, engine, a test's or program's own name
        self.folder = folder
        self.files = set()  # relative to src/
        self.depends = set()


def strip_comments(text):
    return re.sub(r"#[^\n]*", "", text)


def split_keywords(words):
    """["a", "SOURCES", "b", "c"] -> {"": ["a"], "SOURCES": ["b", "c"]}"""
    parts, key = {"": []}, ""
    for word in words:
        if word in KEYWORDS:
            key = word
            parts.setdefault(key, [])
        else:
            parts[key].append(word)
    return parts


def read_targets(src):
    """The targets that the CMakeLists.txt files under src/ declare, by name."""
    targets = {}
    aliases = {}  # CMake's name of a library (onepass_attention_cpu) -> ours (attention/cpu)
    links = []
    for cmake in sorted(src.rglob("CMakeLists.txt")):
        folder = cmake.parent.relative_to(src).as_posix()
        prefix = "" if folder == "." else folder + "/"
        lists = {}  # ${NAME} -> file names
        for command, body in COMMAND.findall(strip_comments(cmake.read_text())):
            words = [word for word in body.split() if word not in ("SHARED", "OBJECT")]
            if not words:
                continue
            if command == "onepass_isa_sources":
                lists["${" + words[1] + "}"] = [f"{words[0]}_{isa}.cc" for isa in ISAS]
                continue
            if command == "set":  # of every branch of an if()
                lists.setdefault("${" + words[0] + "}", []).extend(words[1:])
                continue
            if command == "target_link_libraries":
                links.append((words[0], words[1:]))
                continue
            target = targets.setdefault(words[0], Target(words[0], folder))
            parts = split_keywords(words[1:])
            files = parts.get("SOURCES", []) + (parts[""] if command.startswith("add_") else [])
            target.files |= {prefix + f for word in files for f in lists.get(word, [word])}
            target.depends |= set(parts.get("DEPENDS", []))
            if command == "onepass_library":
                aliases["onepass_" + words[0].replace("/", "_")] = words[0]
                if "TESTS" in parts:
                    test = targets.setdefault(words[0] + " tests", Target(words[0] + " tests", folder))
                    test.files |= {prefix + f for word in parts["TESTS"] for f in lists.get(word, [word])}
                    test.depends |= {words[0], *parts.get("TEST_DEPENDS", [])}
    for name, libraries in links:
        target = targets.get(aliases.get(name, name))
        if target:
            target.depends |= {aliases[library] for library in libraries if library in aliases}
    return targets


def closure(targets, name):
    seen, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo.extend(targets[name].depends if name in targets else [])
    return seen


def owner_of(file, targets, by_file):
    """The target whose file this is; a header goes with the source of its name, else with the library of its folder."""
    if file in by_file:
        return by_file[file]
    stem = file.rsplit(".", 1)[0]
    for suffix in (".cc", ".cu"):
        if stem + suffix in by_file:
            return by_file[stem + suffix]
    folder = file.rpartition("/")[0]
    while folder:
        if folder in targets:
            return targets[folder]
        here = [target for target in targets.values() if target.folder == folder]
        if here:
            return here[0]
        folder = folder.rpartition("/")[0]
    return None


def kernel_folder(file):
    return next((folder for folder in KERNELS if file.startswith(folder + "/")), None)


def order_problem(file, header):
    room, other = file.split("/")[0], header.split("/")[0]
    if other not in ROOMS:
        return f'includes "{header}": {other}/ is not in the list of rooms'
    if room not in ROOMS:
        return f"{room}/ is not in the list of rooms"
    if ROOMS.index(other) > ROOMS.index(room):
        return f'{room}/ may not include "{header}": {other}/ comes after it'
    folder = kernel_folder(file)
    is_test = file.endswith("_test.cc") or "/testing/" in file
    if folder and not header.startswith((folder + "/", *KERNELS_SEE)) and not (is_test and other == "attention"):
        return f'{folder}/ may not include "{header}": the kernels see base/, tensor/ and attention_params.h alone'
    if other in DOORS and room in DOORS[other][0] and header not in DOORS[other][1]:
        return f'{room}/ may not include "{header}": {other}/ is entered by {", ".join(DOORS[other][1])}'
    return None


def find_cycles(graph):
    """Each cycle once, as the list of its files."""
    cycles, state = [], {}

    def visit(file, path):
        state[file] = "open"
        for header in graph.get(file, ()):
            if state.get(header) == "open":
                cycles.append(path[path.index(header) :] if header in path else [file])
            elif header not in state:
                visit(header, [*path, header])
        state[file] = "done"

    for file in sorted(graph):
        if file not in state:
            visit(file, [file])
    return cycles


def check(root):
    """The problems found under root/src, as lines of text."""
    src = Path(root) / "src"
    files = sorted(p.relative_to(src).as_posix() for p in src.rglob("*") if p.suffix in SOURCES)
    targets = read_targets(src)
    by_file = {file: target for target in targets.values() for file in target.files}
    problems, graph, reach = [], {}, {}
    for name, target in targets.items():
        problems += [
            f'src/{target.folder}/CMakeLists.txt: {name} depends on "{depend}", which no CMakeLists.txt declares'
            for depend in sorted(target.depends)
            if depend not in targets
        ]
        problems += [
            f"src/{target.folder}/CMakeLists.txt: {name} names {file}, which does not exist"
            for file in sorted(target.files)
            if "$" not in file and not (src / file).exists()
        ]
        reach[name] = closure(targets, name)
    for file in files:
        text = (src / file).read_text()
        graph[file] = []
        owner = owner_of(file, targets, by_file)
        if file.endswith((".cc", ".cu")) and file not in by_file:
            problems.append(f"src/{file}: no CMakeLists.txt names it")
        for match in INCLUDE.finditer(text):
            # Beside the file first, as the compiler looks.
            header = match.group(1)
            beside = f"{file.rpartition('/')[0]}/{header}"
            if beside in files:
                header = beside
            where = f"src/{file}:{text.count(chr(10), 0, match.start(1)) + 1}"
            if header not in files:
                if header.split("/")[0] in ROOMS:
                    problems.append(f'{where}: includes "{header}", which does not exist')
                continue  # of a library
            graph[file].append(header)
            problem = order_problem(file, header)
            if problem:
                problems.append(f"{where}: {problem}")
                continue
            needed = owner_of(header, targets, by_file)
            if owner and needed and needed.name not in reach[owner.name]:
                problems.append(
                    f'{where}: includes "{header}", but {owner.name} does not declare {needed.name} in DEPENDS'
                )
    problems += ["src: headers include each other: " + " -> ".join([*c, c[0]]) for c in find_cycles(graph)]
    return problems


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    if not (Path(root) / "src").is_dir():
        print(f"check_layers: no folder src in {root}", file=sys.stderr)
        return 2
    problems = check(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
