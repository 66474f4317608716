"""``python -m benchmarks.trace.shipped.make [NAME …]``: record the shipped traces again.

Each trace has a function that writes the program's input to the working directory and returns the
command to run; inputs are the same every time.  The programs are those installed on the machine, so
a new recording differs in some events: update the golden values in tests/benchmarks/trace with it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.events import parquet
from benchmarks.events.parquet import TraceError
from benchmarks.trace.recorder.run import Trace, record
from benchmarks.trace.shipped import FOLDER
from kernel.engine.command import OneLineParser, run

#: Nanoseconds; with finer times, the times would take a third of the file.
RESOLUTION = 10_000

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"][::4]


@dataclass(frozen=True)
class Recorded:
    """A program to record.

    ``image``: suffix of the recorded executable's path, if it is not the command itself.
    ``environment``: additional environment variables.
    """

    prepare: Callable[[], list[str]]
    image: str = ""
    environment: dict[str, str] = field(default_factory=dict)


#: Programs to record, by name.
SUBJECTS: dict[str, Recorded] = {}


def subject(**how: Any) -> Callable:
    """Return a decorator that adds a function to SUBJECTS under its name.

    The function's docstring is stored in the trace as the description of its input.
    """

    def enter(prepare: Callable[[], list[str]]) -> Callable[[], list[str]]:
        SUBJECTS[prepare.__name__] = Recorded(prepare, **how)
        return prepare

    return enter


def write(name: str, text: str) -> str:
    """Write an input file; return its name."""
    Path(name).write_text(text)
    return name


def words(random: Random, count: int) -> Iterator[str]:
    """Yield words of one to four syllables, some of them much more often than others."""
    known = ["".join(random.choices(_SYLLABLES, k=random.randint(1, 4))) for _ in range(4000)]
    for _ in range(count):
        yield known[int(len(known) ** random.random()) - 1]


def lines(seed: int, count: int, longest: int = 12) -> list[str]:
    """Return lines of text."""
    random = Random(seed)
    stream = words(random, count * longest)
    return [" ".join(next(stream) for _ in range(random.randint(1, longest))) for _ in range(count)]


def people(seed: int, count: int) -> list[dict[str, Any]]:
    """Return nested records."""
    random = Random(seed)
    stream = words(random, count * 12)
    return [
        {
            "id": i,
            "name": f"{next(stream)} {next(stream)}",
            "town": next(stream),
            "tags": [next(stream) for _ in range(random.randint(0, 6))],
            "scores": [round(random.random() * 100, 2) for _ in range(random.randint(0, 8))],
            "address": {"street": next(stream), "number": random.randint(1, 300)},
        }
        for i in range(count)
    ]


def functions(seed: int, count: int) -> str:
    """Return a C source file whose functions call each other."""
    random = Random(seed)
    parts = ["struct node { struct node *next; long key; double weight[4]; };"]
    for i in range(count):
        a, b, c = random.sample(range(3, 99), 3)
        earlier = f"f{random.randrange(i)}(n, k - 1)" if i else "k"
        parts.append(f"""
static long f{i}(struct node *n, long k)
{{
    long sum = {a};
    for (long i = 0; n && i < k; i++, n = n->next) {{
        switch ((n->key + i) % {a % 5 + 2}) {{
        case 0: sum += n->key * {b}; break;
        case 1: sum ^= (long)(n->weight[i % 4] * {c}.5); break;
        default: sum -= k > {b} ? {earlier} : i << {c % 7};
        }}
    }}
    return sum % {a * b * c};
}}""")
    calls = " + ".join(f"f{i}(n, {i})" for i in range(count))
    parts.append(f"long all(struct node *n) {{ return {calls}; }}")
    parts.append("int main(void) { return all(0) & 1; }")
    return "\n".join(parts)


# --- The programs, by the names of their workloads -----------------------------------------------


@subject()
def sqlite() -> list[str]:
    """A database in memory: tables, indices, joins, groups, a full-text-like search."""
    random = Random(1)
    rows = people(1, 6000)
    script = [
        "create table person(id integer primary key, name text, town text, street text);",
        "create table score(person integer references person, value real);",
        "begin;",
    ]
    for p in rows:
        values = (p["name"], p["town"], p["address"]["street"])
        script.append(f"insert into person values({p['id']}, {', '.join(map(repr, values))});")
        script += [f"insert into score values({p['id']}, {value});" for value in p["scores"]]
    script += [
        "commit;",
        "create index by_town on person(town);",
        "create index by_person on score(person, value);",
        "analyze;",
    ]
    for _ in range(200):
        town, low = random.choice(rows)["town"], random.randint(0, 90)
        script += [
            "select name, max(value), group_concat(value) from person join score on person = id "
            f"where town = '{town}' and value > {low} group by id order by 2 desc;",
            f"select town, count(*) from person where name like '%{town[:3]}%' group by town;",
            f"update score set value = value + 1 where person = {random.randrange(6000)};",
        ]
    script.append("delete from score where value < 50; vacuum;")
    return ["sqlite3", ":memory:", f".read {write('input.sql', chr(10).join(script))}"]


@subject(image="cc1")
def cc1() -> list[str]:
    """The C compiler proper, on functions with loops and switches."""
    return ["gcc", "-S", "-O2", write("input.c", functions(2, 60)), "-o", "output.s"]


@subject(environment={"PERL_HASH_SEED": "0"})
def perl() -> list[str]:
    """Counting words, and an index of the lines where each stands."""
    write("input.txt", "\n".join(lines(3, 12000)))
    script = r"""
use strict;
my (%count, %where, @longest);
open(my $in, "<", "input.txt") or die;
while (my $line = <$in>) {
    chomp $line;
    my @words = split / /, $line;
    for my $word (@words) {
        $count{$word}++;
        push @{$where{$word}}, { line => $., text => substr($line, 0, 20) };
        shift @{$where{$word}} if @{$where{$word}} > 20;
    }
    (my $other = $line) =~ s/(\w+) (\w+)/\u$2, \u$1/g;
    push @longest, [length $other, $other];
    @longest = (sort { $b->[0] <=> $a->[0] } @longest)[0 .. 99] if @longest > 200;
}
for my $word (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count) {
    print join(" ", $word, $count{$word}, map { $_->{line} } @{$where{$word}}), "\n";
}
print "$_->[1]\n" for @longest;
"""
    return ["perl", write("index.pl", script)]


@subject()
def jq() -> list[str]:
    """Grouping, sorting and reshaping a JSON document."""
    write("input.json", json.dumps(people(4, 5000)))
    program = (
        "[group_by(.town)[] | {town: .[0].town, people: length, "
        "best: (map({name, score: (.scores | add // 0)}) | sort_by(-.score) | .[:3]), "
        'tags: (map(.tags[]) | unique | join(","))}] '
        "| sort_by(-.people) | .[] | tojson"
    )
    return ["jq", "-r", program, "input.json"]


def _history(seed: int, commits: int) -> None:
    """Make a repository in the working directory, the same every time."""
    random = Random(seed)
    files = {f"src/{word}.txt": lines(seed + i, 80) for i, word in enumerate(_SYLLABLES)}
    out = []
    for i in range(commits):
        message = f"Change {i}\n"
        out.append(
            f"commit refs/heads/main\ncommitter A <a@example.org> {1700000000 + 60 * i} +0000\n"
            f"data {len(message)}\n{message}"
        )
        for name in random.sample(sorted(files), 3) if i else sorted(files):
            text = files[name]
            for line in lines(seed * 1000 + i, 3):
                text[random.randrange(len(text))] = line
            body = "\n".join(text) + "\n"
            out.append(f"M 100644 inline {name}\ndata {len(body)}\n{body}")
    run = {"check": True, "env": os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"}}
    subprocess.run(["git", "init", "-q", "-b", "main"], **run)
    subprocess.run(["git", "fast-import", "--quiet"], input="\n".join(out).encode(), **run)


@subject(environment={"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_PAGER": "cat"})
def git() -> list[str]:
    """The history of a repository with all differences."""
    _history(5, 500)
    return ["git", "log", "-p", "--stat", "--word-diff=porcelain", "main"]


@subject(image="git", environment={"GIT_CONFIG_GLOBAL": "/dev/null"})
def gitpack() -> list[str]:
    """Packing a repository: two threads look for deltas."""
    _history(6, 1500)
    return ["git", "-c", "pack.threads=2", "repack", "-adfq", "--window=60"]


@subject(environment={"PYTHONMALLOC": "malloc", "PYTHONHASHSEED": "0"})
def python() -> list[str]:
    """Parsing, compiling and comparing sources; every object by malloc."""
    random = Random(7)
    source = []
    for i in range(20):
        names = list(words(random, 6))
        source += [
            f"def {names[0]}_{i}({names[1]}_a, {names[2]}_b={i}):",
            f"    {names[3]} = [{names[1]}_a * k for k in range({names[2]}_b) if k % {i + 2}]",
            f"    table = {{str(k): ({names[3]}, k, '{names[4]}') for k in {names[3]}}}",
            f"    return sorted(table.items(), key=lambda item: item[1][1]), '{names[5]}'",
        ]
    write("source.py", "\n".join(source))
    script = """
import ast, collections, difflib, json
text = open("source.py").read()
tree = ast.parse(text)
names = collections.Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))
code = compile(tree, "source.py", "exec")
scope = {}
exec(code, scope)
results = [f(3) for name, f in scope.items() if callable(f)]
document = json.dumps({"names": names, "results": results}, indent=1)
again = json.loads(document)
other = ast.unparse(tree)
changes = list(difflib.unified_diff(text.splitlines(), other.splitlines()))
print(len(document), len(again["names"]), len(changes))
"""
    return ["/usr/bin/python3", write("work.py", script)]


@subject(environment={"PYTHONMALLOC": "malloc", "PYTHONHASHSEED": "0"})
def pythreads() -> list[str]:
    """A pipeline of threads: what one makes another consumes."""
    write("input.json", "\n".join(json.dumps(person) for person in people(8, 1500)))
    script = """
import json, queue, threading
lines, parsed, done = queue.Queue(50), queue.Queue(50), queue.Queue()

def parse():
    while (line := lines.get()) is not None:
        parsed.put(json.loads(line))
    parsed.put(None)

def count():
    found = {}
    while (person := parsed.get()) is not None:
        for tag in person["tags"]:
            found.setdefault(tag, []).append((person["name"].title(), sum(person["scores"])))
    done.put(found)

threads = [threading.Thread(target=f) for f in (parse, parse, count, count)]
for thread in threads:
    thread.start()
for line in open("input.json"):
    lines.put(line)
for _ in range(2):
    lines.put(None)
for thread in threads:
    thread.join()
print(sum(len(done.get()) for _ in range(2)))
"""
    return ["/usr/bin/python3", write("pipeline.py", script)]


@subject()
def node() -> list[str]:
    """Sorting and compressing; the compressors run on threads of their own."""
    write("input.json", json.dumps(people(9, 400)))
    script = """
const fs = require("fs"), zlib = require("zlib"), crypto = require("crypto");
const people = JSON.parse(fs.readFileSync("input.json"));
const towns = new Map();
for (const p of people) {
    if (!towns.has(p.town)) towns.set(p.town, []);
    towns.get(p.town).push(p);
}
let left = 0, bytes = 0;
for (const [town, all] of [...towns].sort((a, b) => b[1].length - a[1].length)) {
    const text = Buffer.from(JSON.stringify(all).repeat(20));
    left++;
    zlib.gzip(text, (error, packed) => {
        bytes += packed.length;
        crypto.createHash("sha256").update(packed).digest("hex");
        if (--left == 0) console.log(bytes);
    });
}
"""
    return ["node", write("towns.js", script)]


@subject()
def gdb() -> list[str]:
    """The debugger reads a program's symbols and lists its functions and types."""
    for i in range(4):
        source = functions(10 + i, 1200).replace("all(", f"all{i}(")
        write(f"part{i}.c", source if i == 0 else source[: source.index("int main")])
    parts = [f"part{i}.c" for i in range(4)]
    subprocess.run(["gcc", "-g", "-O0", "-w", *parts, "-o", "program"], check=True)
    orders = ["info functions f1", "info types node", "info scope all2", "info line f7"]
    return ["gdb", "-nx", "-batch", *(x for o in orders for x in ("-ex", o)), "program"]


@subject()
def vim() -> list[str]:
    """The editor runs a script over a text."""
    write("input.txt", "\n".join(lines(14, 8000)))
    script = """
set nocompatible undolevels=1000
edit input.txt
global/ba/substitute/\\(\\w\\+\\) \\(\\w\\+\\)/\\2 \\1/g
let seen = {}
for line in getline(1, '$')
  for word in split(line)
    let seen[word] = get(seen, word, 0) + 1
  endfor
endfor
let order = sort(items(seen), {a, b -> b[1] - a[1]})
call append(0, map(order[:50], 'v:val[0] . " " . v:val[1]'))
sort u
write! output.txt
quit!
"""
    return ["vim", "-es", "-u", "NONE", "-i", "NONE", "-S", write("script.vim", script)]


@subject()
def bash() -> list[str]:
    """The shell counts words in an associative array."""
    write("input.txt", "\n".join(lines(16, 500)))
    write("archive.txt", "\n".join(lines(18, 16000)))
    script = """
declare -A count
mapfile -t archive < archive.txt
while read -r line; do
    for word in $line; do
        count[$word]=$((${count[$word]:-0} + 1))
        case $word in
            ba*) text+="${word^^} " ;;
            *zo) last=${text##* } ;;
        esac
    done
done < input.txt
for word in "${!count[@]}"; do
    echo "${count[$word]} $word"
done
echo ${#text} ${#archive[@]}
"""
    return ["/usr/bin/bash", write("count.sh", script)]


@subject()
def cmake() -> list[str]:
    """The build generator in script mode: lists, loops and regular expressions."""
    write("input.txt", "\n".join(lines(17, 400)))
    write("archive.txt", "\n".join(lines(19, 12000)))
    script = """
file(STRINGS archive.txt archive)
list(REVERSE archive)
file(STRINGS input.txt lines)
set(longest 0)
foreach(line IN LISTS lines)
  string(REPLACE " " ";" words "${line}")
  list(LENGTH words length)
  if(length GREATER longest)
    set(longest ${length})
  endif()
  foreach(word IN LISTS words)
    string(REGEX REPLACE "([aeiou])([^aeiou])" "\\\\1-\\\\2" parts "${word}")
    string(LENGTH "${parts}" size)
    math(EXPR count_${word} "0${count_${word}} + ${size}")
    list(APPEND all_${size} "${word}")
  endforeach()
endforeach()
foreach(size RANGE 1 20)
  list(REMOVE_DUPLICATES all_${size})
  list(SORT all_${size})
  list(LENGTH all_${size} number)
  message(STATUS "${size}: ${number}")
endforeach()
message(STATUS "${longest}")
"""
    return ["cmake", "-P", write("words.cmake", script)]


# --- Recording -----------------------------------------------------------------------------------


def make(name: str) -> Path:
    """Record one of SUBJECTS; return the path of its trace.  Raises TraceError."""
    about = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as there, tempfile.TemporaryDirectory() as traces:
        with contextlib.chdir(there), _environment(about.environment), _silence():
            command = about.prepare()
            version = _version(command[0])
            inputs = {path.name: path.read_bytes() for path in sorted(Path().glob("[!.]*.*"))}
            recording = record(command, Path(traces) / "t.parquet", RESOLUTION)
        if recording.exit != 0:
            raise TraceError(f"{command[0]}: failed with exit code {recording.exit}")
        out = FOLDER / f"{name}.parquet"
        with parquet.Reader(_chosen(recording.traces, about.image).path) as reader:
            provenance = reader.provenance
            provenance.pop("children", None)
            with parquet.Writer(out) as writer:
                for events in reader.groups():
                    writer.add(events)
                writer.provenance = provenance | {
                    "command": command,
                    "environment": about.environment,
                    "version": version,
                    "system": f"{platform.system()} {platform.machine()}",
                    "made_by": f"python -m benchmarks.trace.shipped.make {name}",
                    "input": SUBJECTS[name].prepare.__doc__,
                    "scripts": {
                        name: text.decode() for name, text in inputs.items() if len(text) < 4096
                    },
                    "input_sha256": {
                        name: hashlib.sha256(text).hexdigest() for name, text in inputs.items()
                    },
                }
    return out


def _chosen(traces: list[Trace], image: str) -> Trace:
    """Return the largest trace of the executable ``image``; the first trace if it is empty."""
    fitting = [trace for trace in traces if trace.program.endswith(image)] if image else traces[:1]
    return max(fitting, key=lambda trace: trace.events)


def _version(program: str) -> str:
    """Return the first line of a program's version output."""
    for option in ("--version", "-version"):
        done = subprocess.run(
            [program, option], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip().splitlines()[0]
    return ""


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes | {"LC_ALL": "C.UTF-8", "HOME": os.getcwd()})  # noqa: PTH109
    os.environ.setdefault("XDG_CACHE_HOME", str(Path(before.get("HOME", "/")) / ".cache"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Redirect standard output to /dev/null."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def main(arguments: list[str] | None = None) -> int:
    """Record the named subjects, or all; return the exit code."""
    parser = OneLineParser(
        prog="python -m benchmarks.trace.shipped.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(SUBJECTS)} (default: all)"
    )
    names = parser.parse_args(arguments).names
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        known = ", ".join(SUBJECTS)
        print(f"error: unknown program {unknown[0]!r}; choose of {known}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or SUBJECTS:
        try:
            path = make(name)
        except (TraceError, subprocess.CalledProcessError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failed = 1
            continue
        except OSError as error:  # program not installed, or disk full
            print(f"error: {name}: {error.filename}: {error.strerror}", file=sys.stderr)
            failed = 1
            continue
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        with parquet.Reader(path) as reader:
            size = path.stat().st_size
            print(
                f"{path.name}: {reader.events:,} events, {reader.provenance['threads']} threads, "
                f"{size:,} bytes ({size / reader.events:.2f} per event)",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(run("benchmarks.trace.shipped.make", main))
