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

ENGINE = Path(penstock_engine.__file__).parent
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
