"""No code from data, by the syntax of the sources; no secrets and nothing executable in a run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("g2rpo", "adapters", "trainer", "cli", "examples", "benchmarks", "docs")

# A run's own worker processes get pickled objects through a pipe; nothing is read from a file.
PICKLED = {"g2rpo/rewards/pool.py", "g2rpo/rewards/workers.py"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}


def name_of(node: ast.expr) -> str:
    """Return the dotted name of an expression, such as ``torch.load``; "" if it has none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and bool(node.value)


def faults_of_call(call: ast.Call) -> list[str]:
    name = name_of(call.func)
    options = {each.arg: each.value for each in call.keywords if each.arg}
    faults = []
    if name in ("eval", "exec", "compile", "builtins.eval", "builtins.exec"):
        faults.append(name)
    if name == "torch.load" and not is_true(options.get("weights_only")):
        faults.append("torch.load without weights_only=True")
    if name in ("yaml.load", "yaml.load_all"):
        loader = options.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or name_of(loader).rpartition(".")[2] not in SAFE_LOADERS:
            faults.append(f"{name} without a safe loader")
    if name in ("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load"):
        faults.append(name)
    if name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
        faults.append(name)
    if name.endswith((".load", ".save", ".fromfile")) and is_true(options.get("allow_pickle")):
        faults.append("allow_pickle=True")
    # Of an option that is not a constant, only the user can have made it true.
    faults += [f"{key}=True" for key in ("shell", "trust_remote_code") if is_true(options.get(key))]
    return faults


def faults(tree: ast.AST, *, may_pickle: bool = False) -> list[str]:
    """Return the lines of a source that may run code from data, or unpickle it."""
    found = []
    for node in ast.walk(tree):
        what: list[str] = []
        if isinstance(node, ast.Call):
            what = faults_of_call(node)
        elif isinstance(node, ast.Import):
            what = [each.name for each in node.names if each.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            what = [str(node.module)]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            what = [
                f"{key.value}: True"
                for key, value in pairs
                if isinstance(key, ast.Constant)
                and key.value in ("trust_remote_code", "allow_pickle", "shell")
                and is_true(value)
            ]
        if may_pickle:
            what = [each for each in what if each != "pickle"]
        found += [f"line {node.lineno}: {each}" for each in what]
    return found


SOURCES = [
    path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")
]


def test_no_source_file_runs_code_from_data():
    assert len(SOURCES) > 250
    found = {}
    for name in SOURCES:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        if lines := faults(tree, may_pickle=name in PICKLED):
            found[name] = lines
    assert found == {}
    assert set(SOURCES) >= PICKLED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import dill as d",
        "from pickle import loads",
        "from joblib import load",
        "torch.load('a')",
        "torch.load('a', weights_only=False)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load_all(text, Loader=yaml.UnsafeLoader)",
        "yaml.unsafe_load(text)",
        "eval('1')",
        "exec(code)",
        "Model.from_pretrained('a', trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "np.load('a', allow_pickle=True)",
    ],
)
def test_the_scan_finds(text):
    assert len(faults(ast.parse(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "torch.load('a', weights_only=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.safe_load(text)",
        "model.eval()",
        "re.compile('a')",
        "Model.from_pretrained('a', trust_remote_code=options.trust_remote_code)",
        "subprocess.run(['ls'])",
        "np.load('a')",
    ],
)
def test_the_scan_lets_pass(text):
    assert faults(ast.parse(text)) == []


SECRETS = {
    "HF_TOKEN": "hf_secretsecretsecret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secondsecretsecret",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "TRACKIO_SPACE_ID": "someone/private-space",
    "MY_PASSWORD": "correct horse battery",
}


@pytest.fixture(scope="module")
def run_with_secrets(tmp_path_factory):
    """Return the folder of a run and of its report, made with secrets in the environment."""
    from tests.trainer.test_resume import TINY

    folder = tmp_path_factory.mktemp("run")
    pairs = [part for each in TINY for part in ("--set", each)]
    more = ["--steps", "2", "--set", "output.plots=true", "--set", "output.trackers=[tensorboard]"]
    command = [sys.executable, "-m", "g2rpo_cli"]
    for rest in (
        ["train", "--output-dir", str(folder / "run"), *pairs, *more],
        ["report", str(folder / "run")],
    ):
        subprocess.run(
            [*command, *rest],
            check=True,
            capture_output=True,
            env={**os.environ, **SECRETS, "OMP_NUM_THREADS": "1"},
            # As permissive as it gets: what is executable then was made so.
            preexec_fn=lambda: os.umask(0),
        )
    return folder


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_no_file_of_a_run_or_its_report_holds_a_secret_of_the_environment(run_with_secrets):
    files = files_of(run_with_secrets)
    names = {path.name for path in files}
    assert {"config.yaml", "environment.json", "report.html", "trainer_state.json"} <= names
    for path in files:
        content = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path


def test_no_file_of_a_run_is_executable_or_a_link(run_with_secrets):
    for path in files_of(run_with_secrets / "run"):
        assert not path.stat().st_mode & 0o111, path
        assert not path.is_symlink(), path


PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def loose_actions(text):
    """Return the actions of a workflow that are not pinned to a commit, with its tag behind it."""
    used = re.findall(r"\buses: *(.+)", text)
    return [action for action in used if not PINNED.fullmatch(action)]


def test_workflows_pin_every_action_to_a_commit():
    paths = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    assert sum(text.count("uses:") for text in texts) > 10
    assert [action for text in texts for action in loose_actions(text)] == []


def test_an_action_that_may_change_is_found():
    commit = "a" * 40
    text = f"- uses: a/b@v4\n- uses: a/b@{commit}\n- uses: a/b/c@{commit} # v4.0.1\n"
    assert loose_actions(text) == ["a/b@v4", f"a/b@{commit}"]
