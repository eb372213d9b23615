"""Tasks: what models are asked, and how their answers are graded. A task knows no model.

=========== =======================================================================================
base        Task, Example, Grade
scoring     graders, and the published ones as legacy_*; extraction and verdicts find the answers
gsm8k       word problems (contextual)
aqua        algebra with five options (contextual)
imdb        sentiment of film reviews (contextual)
passkey     a digit string hidden in a prompt (contextual)
facts       cities, sports, art, technology, celebrity: yes/no questions (parametric)
pairs       the same question closed-book, open-book and counterfactual, at equal format
letters     a list continued from the prompt or from memory, at equal surface
conflicts   the prompt states one object, training stored another (no Task: two answers compete)
own         examples from a user's file
registry    TASKS, load_task
=========== =======================================================================================
"""

from mi_massive.tasks.base import Example, Grade, Grader, Kind, Task, TaskSource
from mi_massive.tasks.own import load_own_task
from mi_massive.tasks.registry import TASKS, load_task

__all__ = [
    "TASKS",
    "Example",
    "Grade",
    "Grader",
    "Kind",
    "Task",
    "TaskSource",
    "load_own_task",
    "load_task",
]
