"""``g2rpo verify``: which invariants an advantage function keeps, and what breaks the others."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._output import Json, bar, print_json, print_table

if TYPE_CHECKING:
    from g2rpo.testing import Result


def verify(
    target: Annotated[
        str | None,
        typer.Argument(
            help="`module:function`, `path/to/file.py:function`, or the name of an estimator, "
            "such as `gaussian` or `grpo`.",
            show_default=False,
        ),
    ] = None,
    invariant: Annotated[
        list[str] | None,
        typer.Option("--invariant", "-i", help="Check this one; repeat it. Default: all."),
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option("--waive", "-w", help="An invariant that may fail; repeat it."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="An option of the function."),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Batches to try for each.")] = 100,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="How far off an advantage may be; 0 demands equal bits."),
    ] = 1e-3,
    library: Annotated[
        Literal["numpy", "torch", "jax"], typer.Option(help="Whose arrays the function takes.")
    ] = "numpy",
    dtype: Annotated[
        Literal["float64", "float32"], typer.Option(help="Precision of the rewards.")
    ] = "float64",
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="List the invariants, and stop.")] = False,
    json: Json = False,
) -> None:
    """Check an advantage function of your own against named invariants.

    The function is called with `(rewards, groups, tasks)`, or `(rewards, groups)` if it takes no
    more: arrays of one length, labels being integers. If it has a keyword `lengths`, it gets the
    responses' lengths in tokens besides. It returns one advantage a rollout. Batches of many kinds
    of reward are tried; of those that break an invariant the smallest is shown.

    Exit status: 0 if every invariant holds or is waived, 1 if one fails, 2 if there is nothing to
    check.

    **Examples**

    - `g2rpo verify my_project.advantages:leave_one_out`

    - `g2rpo verify advantages.py:normalised --library torch --dtype float32`

    - `g2rpo verify grpo --waive increasing-maps --waive task-variance --waive finite`

    - `g2rpo verify gaussian --set task_stage=match-all -i sign -i no-signal`
    """
    need("g2rpo verify", "hypothesis", "rich", "pydantic", "yaml", extra="cli")
    with reported():
        from g2rpo_trainer.errors import RunError

        if list_:
            _list_invariants(json)
            return
        if target is None:
            raise RunError("name a TARGET, such as my_module:my_function, grpo or gaussian")
        if library != "numpy":
            need(f"g2rpo verify --library {library}", library, extra=library)
        from g2rpo_cli._target import load_target

        function = load_target(target, settings or [])
        subject = {"library": library, "dtype": dtype, "tolerance": tolerance}
        if settings:
            _try_options(target, function, subject)
        search = {"max_examples": examples, "seed": seed, **subject}
        results = _verify(function, _known(invariant), _known(waive), search)
        calls = [_call_of(result, target.rpartition(":")[2], library) for result in results]
        if json:
            _print_as_json(results, calls)
        else:
            _print_results(results, calls)
            _print_summary(target, results)
    if any(result.verdict == "fails" for result in results):
        raise typer.Exit(1)


def _known(names: Sequence[str] | None) -> list[str]:
    from g2rpo._suggest import unknown_name
    from g2rpo.testing import INVARIANTS
    from g2rpo_trainer.errors import RunError

    for name in names or ():
        if name not in INVARIANTS:
            raise RunError(unknown_name("invariant", name, INVARIANTS))
    return list(dict.fromkeys(names or ()))


def _try_options(target: str, function: Callable[..., Any], subject: dict[str, Any]) -> None:
    """Call once, so that a wrong option is not taken for a broken invariant."""
    import numpy as np

    from g2rpo.testing import RewardBatch, Subject, Violation
    from g2rpo_trainer.errors import RunError

    labels = np.zeros(2, dtype=np.int64)
    try:
        Subject(function, **subject)(RewardBatch(np.asarray([0.0, 1.0]), labels, labels))
    except Violation as violation:
        raise RunError(f"{target} with the options of --set: {violation}") from None


def _verify(
    function: Callable[..., Any], names: list[str], waive: list[str], search: dict[str, Any]
) -> "list[Result]":
    from g2rpo.testing import INVARIANTS, verify_advantages
    from g2rpo_trainer.errors import RunError

    chosen = names or list(INVARIANTS)
    if idle := [name for name in waive if name not in chosen]:
        raise RunError(f"--waive {idle[0]}: it is not among those that --invariant names")
    results = []
    for name in bar(chosen, len(chosen), "verifying"):
        waived = [name] if name in waive else []
        try:
            results += verify_advantages(function, invariants=[name], waive=waived, **search)
        except ValueError as error:  # of an option: the function's own are counter-examples
            raise RunError(str(error)) from None
    return results


def _call_of(result: "Result", name: str, library: str) -> str | None:
    """Return the call that shows the counter-example, as Python text."""
    from g2rpo.testing import reproduction

    found = result.counterexample
    if found is None:
        return None
    module = {"numpy": "np", "torch": "torch", "jax": "jnp"}[library]
    return reproduction(found.arguments, name, module, found.keywords)


def _print_as_json(results: "Sequence[Result]", calls: Sequence[str | None]) -> None:
    rows = []
    for result, call in zip(results, calls, strict=True):
        found = result.counterexample
        rows.append(
            {
                "invariant": result.invariant.name,
                "verdict": result.verdict,
                "statement": result.invariant.statement,
                "counterexample": None if found is None else str(found),
                "call": call,
            }
        )
    print_json(rows)


def _print_results(results: "Sequence[Result]", calls: Sequence[str | None]) -> None:
    from rich.console import Console
    from rich.text import Text

    from g2rpo_trainer.layout import PlainTable

    styles = {"holds": "green", "fails": "bold red", "waived": "yellow"}
    table = PlainTable("invariant", "verdict", "statement")
    for result in results:
        verdict = Text(result.verdict, styles[result.verdict])
        table.add_row(result.invariant.name, verdict, result.invariant.statement)
    print_table(table)
    for result, call in zip(results, calls, strict=True):
        if call is not None:
            heading = Text.assemble("\n", (result.invariant.name, "bold"), " ")
            Console().print(heading.append(result.verdict, styles[result.verdict]))
            print(result.counterexample)
            print(f"  {call}")


def _print_summary(target: str, results: "Sequence[Result]") -> None:
    verdicts = [result.verdict for result in results]
    failing = [result.invariant.name for result in results if result.verdict == "fails"]
    needless = [result.invariant.name for result in results if result.waived and result.holds]
    counts = [f"{verdicts.count('holds')} hold"]
    if "waived" in verdicts:
        counts.append(f"{verdicts.count('waived')} waived")
    if failing:
        counts.append(f"{len(failing)} fail")
    print(f"\n{target}: {', '.join(counts)}")
    if needless:
        print(f"no need to waive {', '.join(needless)}: no counter-example was found")
    if failing:
        print(f"what is meant to be so can be waived: --waive {' --waive '.join(failing)}")


def _list_invariants(json: bool) -> None:
    from g2rpo.testing import INVARIANTS
    from g2rpo_trainer.layout import PlainTable

    rows = [(invariant.name, invariant.statement) for invariant in INVARIANTS.values()]
    if json:
        print_json([{"invariant": name, "statement": statement} for name, statement in rows])
        return
    table = PlainTable("invariant", "statement")
    for row in rows:
        table.add_row(*row)
    print_table(table)
