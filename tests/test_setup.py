"""Installing: the pins agree everywhere, setup_conda_env.sh keeps its word, CI runs what the README says."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")


def read_requirements(name: str) -> list[Requirement]:
    lines = [line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def pinned_version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned"
    return Version(specifier.version)


# --- Pins -------------------------------------------------------------------------------------------------


def test_environment_and_requirements_list_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip_section,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [str(Requirement(line)) for line in pip_section] == [
        str(requirement) for requirement in read_requirements("requirements.txt")
    ]


def test_environment_is_named_FF_and_brings_its_own_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "FF"
    assert "pip" in environment["dependencies"]
    assert "pytorch" not in environment["channels"], "no longer fed"


@pytest.mark.parametrize("python_version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-demo.txt"])
def test_every_python_gets_exactly_one_pin_of_each_package(name, python_version):
    requirements = read_requirements(name)
    applying = [r for r in requirements if not r.marker or r.marker.evaluate({"python_version": python_version})]
    for requirement in applying:
        pinned_version(requirement)
    assert sorted(r.name for r in applying) == sorted({r.name for r in requirements})


def test_requirements_name_every_package_the_code_imports():
    """OpenCV and Gradio are needed for digits of one's own alone, TensorBoard where it is asked for."""
    imported = set()
    for file in [ROOT / "main.py", *(ROOT / "src").glob("**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
        for name, its_file in (("gradio", "demo.py"), ("cv2", "finding.py")):
            assert name not in imported or file.name == its_file
            imported.discard(name)
    import_names = {"hydra-core": "hydra", "pyyaml": "yaml", "pillow": "PIL"}
    required = {import_names.get(r.name, r.name) for r in read_requirements("requirements.txt")}
    assert imported - set(sys.stdlib_module_names) - {"src"} <= required


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-demo.txt"])
def test_other_requirements_include_those_of_a_run(name):
    assert "-r requirements.txt" in (ROOT / name).read_text().splitlines()


@pytest.mark.parametrize("requirement", read_requirements("requirements.txt"), ids=str)
def test_installed_packages_fit_the_pins(requirement):
    if requirement.marker and not requirement.marker.evaluate():
        pytest.skip("for another Python")
    installed, pinned = Version(metadata.version(requirement.name)), pinned_version(requirement)
    assert installed.major == pinned.major
    if requirement.name in ("torch", "torchvision"):
        assert installed.base_version == pinned.base_version  # the build (+cpu, +cu130) is the user's choice


def test_cuda_builds_were_looked_up_for_the_pinned_torch():
    (torch,) = [r for r in read_requirements("requirements.txt") if r.name == "torch"]
    assert f"torch {pinned_version(torch)} is built for" in (ROOT / "setup_conda_env.sh").read_text()


# --- setup_conda_env.sh, run for real with a stand-in for conda on the PATH -------------------------------

# The stand-in keeps the environments it was told to create, and notes how it was called.
STAND_IN = """
import json, os, sys
from pathlib import Path

tool, *arguments = sys.argv[1:]
state = Path(os.environ["STAND_IN_STATE"])
environments = state / "environments"
with (state / "calls.jsonl").open("a") as calls:
    constraints = os.environ.get("PIP_CONSTRAINT")
    print(json.dumps({
        "tool": tool,
        "arguments": arguments,
        "directory": os.getcwd(),
        "index": os.environ.get("PIP_EXTRA_INDEX_URL"),
        "constraints_file": constraints,
        "constraints": Path(constraints).read_text().split() if constraints else None,
        "always_yes": os.environ.get("MAMBA_ALWAYS_YES"),
    }), file=calls)
if arguments == ["env", "list"]:
    print("# conda environments:", "#", "base  *  /somewhere", "FF-old   /somewhere/envs/FF-old", sep="\\n")
    if environments.exists():
        print("FF       /somewhere/envs/FF")
    sys.exit(int(os.environ.get("STAND_IN_LIST_STATUS", 0)))
status = int(os.environ.get("STAND_IN_STATUS", 0))
if status == 0:
    environments.touch()
sys.exit(status)
"""


class Setup:
    """Runs setup_conda_env.sh on a PATH that holds a few system tools and the stand-ins, nothing else."""

    def __init__(self, folder: Path, project: Path):
        self.folder, self.project, self.environment = folder, project, {}
        self.path = folder / "bin"
        self.path.mkdir()
        for name in ("awk", "basename", "cat", "dirname", "mktemp", "rm", "sed", "uname"):
            (self.path / name).symlink_to(shutil.which(name))
        (folder / "stand_in.py").write_text(STAND_IN)

    def add_script(self, path: Path, body: str) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{BASH}\n{body}\n")
        path.chmod(0o755)
        return path

    def add_tool(self, name: str, folder: str = "bin") -> Path:
        stand_in = f'"{sys.executable}" "{self.folder / "stand_in.py"}" {name} "$@"'
        return self.add_script(self.folder / folder / name, f"exec {stand_in}")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BASH, str(self.project / "setup_conda_env.sh"), *arguments],
            env={"PATH": str(self.path), "STAND_IN_STATE": str(self.folder), **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[dict]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def installing_calls(self) -> list[dict]:
        return [call for call in self.calls() if call["arguments"] != ["env", "list"]]


@pytest.fixture
def setup(tmp_path):
    project = tmp_path / "a checkout"  # scripts tend to break at blanks
    project.mkdir()
    for name in ("setup_conda_env.sh", "environment.yml"):
        shutil.copy(ROOT / name, project)
    return Setup(tmp_path, project)


CREATE = ["env", "create", "-n", "FF", "-f", "environment.yml"]
UPDATE = ["env", "update", "-n", "FF", "-f", "environment.yml", "--prune"]


@pytest.mark.parametrize(
    ("tool", "create"),
    [("conda", CREATE), ("mamba", CREATE), ("micromamba", CREATE[1:])],
    ids=lambda value: str(value),
)
def test_creates_the_environment_and_updates_it_the_second_time(setup, tool, create):
    setup.add_tool(tool)
    first, second = setup.run(), setup.run()
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert [call["arguments"] for call in setup.installing_calls()] == [create, UPDATE]
    for call in setup.installing_calls():
        assert Path(call["directory"]) == setup.project
        assert call["always_yes"] == "true"  # no question left unanswered
    assert f"{tool} activate FF" in first.stdout
    assert "python -m main" in first.stdout
    assert ("source activate FF" in first.stdout) == (tool == "conda")


def test_without_an_argument_pip_is_left_alone(setup):
    setup.add_tool("conda")
    assert setup.run().returncode == 0
    (call,) = setup.installing_calls()
    assert call["index"] is None
    assert call["constraints"] is None


@pytest.mark.parametrize(
    ("argument", "build"), [("cpu", "cpu"), ("12.6", "cu126"), ("13.0", "cu130"), ("13.2", "cu132")]
)
def test_the_argument_selects_the_build_in_the_one_installing_call(setup, argument, build):
    setup.add_tool("conda")
    torch, torchvision = (
        pinned_version(r) for r in read_requirements("requirements.txt") if r.name in ("torch", "torchvision")
    )
    for _ in range(2):  # created, then updated
        finished = setup.run(argument)
        assert finished.returncode == 0, finished.stderr
    assert len(setup.installing_calls()) == 2
    for call in setup.installing_calls():
        assert call["index"] == f"https://download.pytorch.org/whl/{build}"
        assert call["constraints"] == [f"torch=={torch}+{build}", f"torchvision=={torchvision}+{build}"]
        assert not Path(call["constraints_file"]).exists(), "left behind"


def test_pip_settings_of_the_user_are_kept(setup):
    setup.add_tool("conda")
    finished = setup.run("cpu", PIP_EXTRA_INDEX_URL="https://example.org/simple")
    assert finished.returncode == 0, finished.stderr
    (call,) = setup.installing_calls()
    assert call["index"] == "https://example.org/simple https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    "arguments",
    [["11"], ["gpu"], ["9.9"], ["cu126"], ["--cuda"], ["12.6 13.0"], ["cpu", "12.6"]],
    ids=" ".join,
)
def test_a_bad_argument_is_one_clear_line_and_nothing_is_called(setup, arguments):
    setup.add_tool("conda")
    finished = setup.run(*arguments)
    assert finished.returncode == 1
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert "cpu" in line and "CUDA" in line
    assert setup.calls() == []


def test_help_lists_the_choices(setup):
    finished = setup.run("--help")
    assert finished.returncode == 0
    for choice in ("cpu", "12.6", "13.0", "13.2"):
        assert choice in finished.stdout


def test_says_what_to_do_where_no_tool_is_found(setup):
    finished = setup.run()
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    for word in ("conda", "mamba", "micromamba", "install", "README"):
        assert word in line


def test_conda_is_preferred(setup):
    for tool in ("micromamba", "mamba", "conda"):
        setup.add_tool(tool)
    assert setup.run().returncode == 0
    assert {call["tool"] for call in setup.calls()} == {"conda"}


@pytest.mark.parametrize(("variable", "tool"), [("CONDA_EXE", "conda"), ("MAMBA_EXE", "micromamba")])
def test_finds_the_program_behind_a_shell_function(setup, variable, tool):
    program = setup.add_tool(tool, folder="off the path")
    finished = setup.run(**{variable: str(program)})
    assert finished.returncode == 0, finished.stderr
    assert f"{tool} activate FF" in finished.stdout
    assert len(setup.installing_calls()) == 1


@pytest.mark.parametrize("variable", ["STAND_IN_STATUS", "STAND_IN_LIST_STATUS"])
def test_a_failing_tool_fails_the_script(setup, variable):
    setup.add_tool("conda")
    finished = setup.run("cpu", **{variable: "7"})
    assert finished.returncode == 7
    assert "ready" not in finished.stdout
    for call in setup.installing_calls():
        assert not Path(call["constraints_file"]).exists(), "left behind"


def test_macos_has_one_build_and_no_cuda(setup):
    setup.add_tool("conda")
    (setup.path / "uname").unlink()
    setup.add_script(setup.path / "uname", "echo Darwin")
    cuda = setup.run("12.6")
    assert cuda.returncode == 1
    assert "macOS" in cuda.stderr
    assert setup.calls() == []
    cpu = setup.run("cpu")
    assert cpu.returncode == 0, cpu.stderr
    (call,) = setup.installing_calls()
    assert call["constraints"] is None  # the wheel there carries no build in its version


# --- The scripts and CI -----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["setup_conda_env.sh", ".ci/run", "benchmarks/measure_results.sh"])
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.prefix, "bin")))
    assert shellcheck, "shellcheck comes with requirements-dev.txt"
    finished = subprocess.run([shellcheck, str(ROOT / script)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    commands = dict(re.findall(r"^(run|test)_command='(.*)'$", ci, flags=re.MULTILINE))
    assert commands["run"].endswith("&& python -m main")
    assert commands["test"].endswith("&& python -m pytest")
    readme_lines = [line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    for command in commands.values():
        assert command in readme_lines
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_git_ignores_what_runs_leave_and_keeps_results(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=tmp_path).returncode == 0

    assert all(ignored(path) for path in ("outputs/x/model.pt", "datasets/MNIST/raw/x", ".venv/x"))
    assert not any(ignored(path) for path in ("results/x/result.json", "images/x.png", "src/datasets/table.py"))
