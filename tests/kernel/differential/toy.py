"""Toy subject: a counter, and a model of the counter with a selectable bug."""

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

from kernel.differential.mutations import Mutation
from kernel.differential.pool import TaskProgress
from kernel.differential.subject import Outcome, Program, Subject
from kernel.differential.tally import Tally


@dataclass(frozen=True)
class ToySetting:
    seed: str
    start: int = 0

    def describe(self):
        return f"seed {self.seed}"

    def name(self):
        return self.seed.replace("/", "-")


DIGITS = 10


def no_fault(total, op):
    return total


def carry(total, op):
    """Return the total; lose a carry if 7 was added to an odd total."""
    return total - DIGITS if op == 7 and total % 2 == 0 else total


def slow(total, op):
    time.sleep(0.001)
    return total


def hangs(total, op):
    while op == 9:
        pass
    return total


def dies(total, op):
    if op == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return total


def raises(total, op):
    if op == 9:
        raise KeyError(op)
    return total


class ToySides:
    def __init__(self, fault, progress):
        self.fault, self.progress = fault, progress

    def run(self, program):
        ops = self.operations(program, program.max_operations)
        outcome = self.repeat(program.setting, ops)
        outcome.tally.programs = 1
        outcome.tally.asked = program.max_operations
        return outcome

    def repeat(self, setting, ops, like=None, *, verbose=False):
        outcome = Outcome(Tally(), length=len(ops))
        real = model = setting.start
        for n, op in enumerate(ops):
            self.progress.start_operation(n)
            real += op
            model = self.fault(model + op, op)
            outcome.ops.append(op)
            outcome.tally.operations += 1
            outcome.tally.tables["parity"]["odd" if op % 2 else "even"] += 1
            outcome.lines.append(f"add {op} = {model}")
            if model != real:
                outcome.what, outcome.index, outcome.length = "the total", n, n + 1
                outcome.lines.append(f"! counter {real}, model {model}")
                break
        return outcome

    def operations(self, program, count):
        random = Random(program.setting.seed)
        return [random.randrange(10) for _ in range(count)]


@dataclass
class Toy(Subject):
    fault: object = no_fault
    total: int = 400
    count_branches: bool = False
    absent: str = ""
    wrong_one: str = ""
    operation_timeout: float | None = 1.0

    command = "tests.toy"
    setting_class = ToySetting
    arguments = "counter"
    tested_name = "the model"
    tables = {"parity": "operations by parity"}  # noqa: RUF012

    def unavailable(self):
        return self.absent

    def wrong_reference(self):
        return self.wrong_one

    def heading(self):
        return ["a counter"]

    def programs(self):
        for n in range(self.total // 100):
            yield Program(ToySetting(f"1/{n}"), 100)

    def mutation_programs(self, programs):
        return replace(self, total=100 * programs).programs()

    @contextmanager
    def sides(self, progress=None):
        yield ToySides(self.fault, progress or TaskProgress())

    def mutated(self, bindings):
        return replace(self, **bindings)

    def variants(self, op):
        if op > 1:
            yield 1
            yield op - 1

    def describe(self, op):
        return f"add {op}"

    def encode(self, op):
        return [op]

    def decode(self, row):
        if not isinstance(row[0], int):
            raise ValueError("is not a number")
        return row[0]


MUTATIONS = [
    Mutation("a digit is carried", "fault", carry),
    Mutation("the model returns", "fault", hangs),
]
