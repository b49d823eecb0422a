"""What the engine may import, and the size that its parts keep."""

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import penstock_engine
import pytest
from penstock_engine import Engine

from examples.invoices.evaluate import MODEL_FOLDER
from tests.engine.tiny import TinyModel

ENGINE = Path(penstock_engine.__file__).parent
TOKENIZER = MODEL_FOLDER / "tokenizer.json"
FOREIGN = "flask redis celery sqlalchemy mlflow msgspec structlog pydantic pydantic_settings penstock penstock_worker"


def test_it_runs_where_the_platform_is_not_installed() -> None:
    """A fresh interpreter in which those packages cannot be found."""
    code = f"""
        import sys
        for name in {FOREIGN.split()!r}:
            sys.modules[name] = None
        from penstock_engine import Engine
        loaded = {{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}}
        print(sorted(loaded & {{"transformers", "triton", *{FOREIGN.split()!r}}}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


BARE = """
    import sys
    from importlib.metadata import distribution, packages_distributions
    from packaging.requirements import Requirement

    def with_dependencies(name, found):
        name = name.lower().replace("_", "-")
        if name in found:
            return
        found.add(name)
        for line in distribution(name).requires or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                with_dependencies(wanted.name, found)

    there = set()
    for name in ("torch", "transformers", "safetensors"):
        with_dependencies(name, there)
    owners = {
        module: {name.lower().replace("_", "-") for name in names}
        for module, names in packages_distributions().items()
    }

    class Installed:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            module = name.partition(".")[0]
            foreign = module in owners and not owners[module] & there
            absent = foreign or module in ("penstock", "penstock_worker")
            return None if absent else self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
"""


def test_it_generates_where_torch_transformers_and_safetensors_are_alone(llama: TinyModel) -> None:
    """With what they need themselves, and nothing else that is installed here."""
    code = f"""
        from penstock_engine import Engine, EngineConfig, Grammar, InvalidSampling, Request, SamplingParams
        engine = Engine.from_folder({str(llama.folder)!r}, EngineConfig(tokenizer={str(TOKENIZER)!r}))
        engine.submit(Request("x", [1, 2, 3], SamplingParams(n=2, max_tokens=4, ignore_eos=True)))
        print(sum(len(engine.step().deltas) for _ in range(4)))
        try:
            engine.submit(Request("x", [1], SamplingParams(grammar=Grammar("regex", "a+"))))
        except InvalidSampling as error:
            print("llguidance is not installed" in str(error))
    """
    program = textwrap.dedent(BARE) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["8", "True"], done.stderr


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("name", ["scheduler", "request", "radix_cache", "page_allocator"])
def test_policy_is_free_of_tensors(name: str) -> None:
    """Nor through what it imports."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        seen.add(module)
        for found in imports(ENGINE / f"{module}.py"):
            assert found.partition(".")[0] != "torch", f"{module} imports torch"
            if found.startswith("penstock_engine."):
                todo += {found.removeprefix("penstock_engine.")} - seen


def test_a_step_reads_at_a_glance() -> None:
    assert len(inspect.getsource(Engine.step).splitlines()) <= 15


@pytest.mark.parametrize("path", sorted(ENGINE.glob("models/*.py")), ids=lambda path: path.name)
def test_a_model_fits_on_a_page(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
