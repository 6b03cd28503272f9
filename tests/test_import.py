"""`import odenet` needs torch alone; the rest comes when it is used."""

import subprocess
import sys

HEAVY = [
    "torchdiffeq",
    "scipy",
    "matplotlib",
    "hydra",
    "omegaconf",
    "lightning",
    "lightning_fabric",
    "sklearn",
    "pandas",
]
HEAVY += ["torchvision", "tensorboard", "rich", "mnist1d"]


def loaded(code: str) -> set[str]:
    code = f"import sys; {code}; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {name.split(".")[0] for name in out.splitlines()[-1].split()}


def test_importing_odenet_imports_torch_and_nothing_heavy_besides():
    before, after = loaded("import torch"), loaded("import odenet")
    assert "torch" in after and "odenet" in after
    assert not (set(HEAVY) & (after - before))


def test_a_native_solve_does_not_need_torchdiffeq_either():
    code = "import torch, odenet; odenet.ODEBlock(odenet.residual.MLP(2))(torch.randn(1, 2)).sum().backward()"
    assert "torchdiffeq" not in loaded(code)
    assert "torchdiffeq" in loaded("import odenet; odenet.list_solvers('torchdiffeq')")


def test_everything_in_all_is_there():
    import odenet

    assert all(hasattr(odenet, name) for name in odenet.__all__)
    lists = ("solvers", "gradients", "residuals", "depth_weights", "backends")
    assert all(getattr(odenet, f"list_{name}")() for name in lists)


def test_packages_that_need_more_are_imported_when_they_are_used():
    code = "import odenet; found = odenet.diagnostics.audit_gradients, odenet.training.fit, odenet.data.moons"
    assert "odenet" in loaded(code)
    assert {"diagnostics", "training"} <= set(dir(__import__("odenet")))
