"""Tasks with a verifier: prompts and solutions that code generates, accuracy, and coverage of the right answers."""

from .accuracy import Accuracy, accuracy, accuracy_under_parallelism
from .arithmetic import Arithmetic
from .balanced_brackets import BalancedBrackets
from .countdown import Countdown
from .coverage import Coverage, ExactCoverage, distinct_expected, exact_coverage, measure_coverage
from .measure import TaskFigures, measure_task
from .permutations import Permutations
from .sudoku import Sudoku
from .symbol_task import SymbolTask
from .task import Examples, Prompts, Task, check_task
from .tokenized_task import TokenizedTask

__all__ = [
    "Accuracy",
    "Arithmetic",
    "BalancedBrackets",
    "Countdown",
    "Coverage",
    "ExactCoverage",
    "Examples",
    "Permutations",
    "Prompts",
    "Sudoku",
    "SymbolTask",
    "Task",
    "TaskFigures",
    "TokenizedTask",
    "accuracy",
    "accuracy_under_parallelism",
    "check_task",
    "distinct_expected",
    "exact_coverage",
    "measure_coverage",
    "measure_task",
]
