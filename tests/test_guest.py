"""A good guest (rule 6): layers work after a fork, in worker processes, in many Python threads, without a home or a folder to write to,
with a damaged cache and without a compiler. Each is a program of its own, as a user would run it; where many would follow one another,
they are children of one process that has imported torch and numba, and nothing of ours."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = """
import os, sys, warnings
import torch
from cnn425.nn import functional as F

def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((1, 16, 24, 24), (24, 16, 3, 3))]

def work(F=F):  # each loop has enough to do to be shared among threads; torch's own operations have little
    x, w = tensors()
    y = F.max_pool2d(F.sigmoid(F.conv2d(x, w, padding=1)), 2)
    return [y.detach(), *torch.autograd.grad(y, (x, w), torch.ones_like(y))]

def one(F=F):  # one loop, which is compiled fast
    return [F.sigmoid(torch.linspace(-90, 90, 30000))]

def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

def right(work):
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(work(), work(torch.nn.functional), strict=True))
"""


def run(program, *, flags=(), root=ROOT, timeout=500, background=False, **environment):
    """Run a program that prints `fine` at its end; a variable that is None is taken away."""
    variables = {k: v for k, v in {**os.environ, "PYTHONPATH": str(root), **environment}.items() if v is not None}
    command = [sys.executable, *flags, "-c", START + textwrap.dedent(program)]
    if background:
        return subprocess.Popen(command, cwd=root, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fine\n"), done.stdout
    return done


FORKING = """
import json, os, sys, traceback
import numba, torch
for line in sys.stdin:
    root, program = json.loads(line)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.path[:0] = [root]
            exec(program, {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(json.dumps(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forking():
    """Run a program that prints `fine` at its end, in a child of a process that serves all tests here."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-B", "-c", FORKING]  # bytecode knows whole seconds only, and a file is changed twice in one
    server = subprocess.Popen(command, cwd="/", env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def forked(program, root=ROOT):
        server.stdin.write(json.dumps([str(root), START + textwrap.dedent(program)]) + "\n")
        server.stdin.flush()
        said = []
        while not said or not said[-1].strip().isdigit():
            said.append(server.stdout.readline())
            assert said[-1], "the process has ended"
        assert said[-2:] == ["fine\n", "0\n"], said

    yield forked
    server.stdin.close()
    server.wait(60)
    server.stdout.close()


def copied(root):
    shutil.copytree(ROOT / "cnn425", root / "cnn425", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def package(tmp_path):
    """A copy of the package as `pip` installs it, without machine code of earlier runs."""
    return copied(tmp_path / "installed")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, forking):
    """Such a copy, with the machine code of one loop; only to be copied again."""
    root = copied(tmp_path_factory.mktemp("compiled"))
    forking(COMPILED, root)
    return root


@pytest.fixture
def used(compiled, tmp_path):
    """A copy of the package that has been used."""
    return shutil.copytree(compiled, tmp_path / "used")


def machine_code(root):
    """The files that the compiler keeps: lists of what is there, and the code."""
    return sorted(path for end in ("nbi", "nbc") for path in root.rglob(f"*.{end}"))


def test_importing_the_layers_imports_no_compiler():
    run("assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules; work(); assert 'numba' in sys.modules; print('fine')")


# ---- processes and threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_after_a_fork_and_a_child_of_a_child_that_sets_threads_itself(forking):
    """The threads of the parent are not there any more: waiting for them would take for ever."""
    forking("""
        for threads in (1, 2):
            torch.set_num_threads(threads)
            here = work()
            child = os.fork()
            if child == 0:
                os._exit(0 if same(work(), here) else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert same(work(), here)  # and the parent goes on
        child = os.fork()
        if child == 0:
            torch.set_num_threads(2)
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if same(work(), here) else 1)
            os._exit(0 if os.waitpid(grandchild, 0)[1] == 0 and same(work(), here) else 1)
        assert os.waitpid(child, 0)[1] == 0
        print("fine")
    """)


@pytest.mark.slow
def test_workers_of_a_data_loader_use_layers(tmp_path):
    """Worker processes are forks of a process whose loops ran, or start from nothing; both give the images that the parent would."""
    (tmp_path / "filtered.py").write_text(
        textwrap.dedent("""
            import torch
            from cnn425.nn import functional as F

            class Filtered(torch.utils.data.Dataset):
                def __len__(self):
                    return 6

                def __getitem__(self, i):
                    generator = torch.Generator().manual_seed(i)
                    x, w = torch.randn(1, 8, 32, 32, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
                    return F.max_pool2d(F.conv2d(x, w), 2)[0]
        """)
    )
    run(
        """
        from filtered import Filtered
        images = Filtered()
        here = [images[i] for i in range(len(images))]
        for context, workers in (("fork", 2), ("spawn", 1)):
            there = torch.utils.data.DataLoader(images, batch_size=None, num_workers=workers, multiprocessing_context=context)
            assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
        print("fine")
        """,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]),
    )


EIGHT = """
    import threading
    from concurrent.futures import ThreadPoolExecutor
    torch.set_num_threads(2)
    together = threading.Barrier(8)

    def thread(_):
        together.wait()
        return [{work}() for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(thread, range(8)))
    expected = {work}()
    assert all(same(result, expected) for each in found for result in each)
    assert right({work})
    print("fine")
"""


def test_eight_python_threads_at_once(forking):
    forking(EIGHT.format(work="work"))


def test_eight_python_threads_compile_the_same_loop(forking, package):
    forking(EIGHT.format(work="one"), package)


def test_a_signal_handler_that_calls_a_layer_while_another_is_computed(forking):
    forking("""
        import signal
        torch.set_num_threads(2)
        expected, calls = work(), []

        def handler(*_):
            with torch.enable_grad():  # inside of a Function torch switches it off
                calls.append(same(work(), expected))

        signal.signal(signal.SIGALRM, handler)
        for tenth in range(40):
            signal.setitimer(signal.ITIMER_REAL, 1e-4 * (tenth + 1))
            while len(calls) <= tenth:
                assert same(work(), expected)
        assert all(calls)
        print("fine")
    """)


def test_a_result_belongs_to_the_caller(forking):
    """Nothing is kept of it: it dies with its last reference, and no later call writes into it."""
    forking("""
        import gc, weakref
        kept = work()
        copies = [t.clone() for t in kept]
        for _ in range(5):
            work()
        assert same(kept, copies)
        gone = [weakref.ref(t.untyped_storage()) for t in kept]
        del kept
        gc.collect()
        assert all(r() is None for r in gone)
        print("fine")
    """)


# ---- files

COMPILED = "assert right(one); from cnn425.kernels.elementwise import sigmoid; assert sigmoid.compiled; print('fine')"


@pytest.mark.slow
def test_an_installation_that_nobody_may_write_to_without_a_home(package):
    """No folder for machine code: compiled anew, the same results, and not a word. A file in place of a folder stops root, too."""
    for folder in [path for path in package.rglob("*") if path.is_dir()]:
        (folder / "__pycache__").touch()
    done = run(COMPILED, root=package, HOME="/dev/null", XDG_CACHE_HOME=None, NUMBA_CACHE_DIR=None)
    assert done.stderr == ""
    assert not machine_code(package)


def test_without_a_home(package):
    done = run(COMPILED, root=package, HOME=None, XDG_CACHE_HOME=None, NUMBA_CACHE_DIR=None)
    assert done.stderr == ""
    assert machine_code(package)


@pytest.mark.slow
def test_two_processes_compile_into_one_folder_at_once(package):
    running = [run(COMPILED, root=package, background=True) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert out == "fine\n"
        assert err == ""
    assert machine_code(package)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_machine_code_is_compiled_anew(forking, used, ending):
    """A computer that is switched off while a file is written leaves half of one."""
    for damage in (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\x00garbage" * 100):
        files = [file for file in machine_code(used) if file.suffix == f".{ending}"]
        assert files
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        forking(COMPILED, used)


@pytest.mark.slow
def test_machine_code_moves_with_an_installation(forking, used):
    """To another folder, with other times of its files: it is taken if it is right, and compiled anew otherwise."""
    for file in used.rglob("*.py"):
        os.utime(file, (1, 1))
    forking(COMPILED, used)


@pytest.mark.slow
def test_a_changed_loop_is_compiled_anew(forking, used):
    """Machine code of another version of the file must not run; also where only a part of the loop, in the same file, has changed."""
    file = used / "cnn425/kernels/elementwise.py"
    text = file.read_text()
    assert "result[i] = np.float32(1) /" in text
    file.write_text(text.replace("result[i] = np.float32(1) /", "result[i] = np.float32(2) /"))
    forking("assert not right(one); print('fine')", used)
    file.write_text(text)
    forking(COMPILED, used)
    file = used / "cnn425/kernels/machine_code.py"  # what shares a loop out is in the same machine code
    text = file.read_text()
    assert text.count("kernel(0, units, *made)") == 1
    file.write_text(text.replace("kernel(0, units, *made)", "kernel(0, units // 2, *made)"))
    forking("torch.set_num_threads(1); assert not right(one); print('fine')", used)


@pytest.mark.slow
def test_two_types_of_numbers_compiled_at_once_are_not_mistaken_for_one_another(forking, package):
    """Each of two processes may find the other's code under the name that it had chosen for its own."""
    program = """

        def gradient(dtype):
            x = torch.linspace(-3, 3, 5000).to(dtype).requires_grad_()
            return torch.autograd.grad(F.sigmoid(x), x, torch.ones_like(x))[0]
        assert torch.allclose(gradient(torch.{dtype}).double(), gradient(torch.float64), atol=1e-6)
        print("fine")
    """
    forking(program.format(dtype="float32"), package)
    first, second = [file for file in machine_code(package) if file.suffix == ".nbc" and "sigmoid_gradient" in file.name]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    forking(program.format(dtype="float32"), package)


# ---- ways to run Python


@pytest.mark.parametrize("flags", [["-OO", "-s", "-B"], ["-W", "error", "-X", "dev"]], ids=" ".join)
def test_flags_of_python(flags):
    done = run("if not right(work): sys.exit(1)\nprint('fine')", flags=flags)
    assert "Error" not in done.stderr


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('sys.modules["numba"] = None', "pip install numba"),
        ("import numba.core.codegen; del numba.core.codegen.JITCodeLibrary", "does not compile its loops (ImportError: "),
    ],
    ids=["missing", "made in another way"],
)
def test_without_a_numba_that_fits_results_are_those_of_the_definition_and_one_warning_says_so(broken, said):
    run(f"""
        {broken}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first, second = work(), work()
        words = [str(w.message) for w in caught if "numba" in str(w.message)]
        assert len(words) == 1 and {said!r} in words[0], words
        assert same(first, second) and right(work)
        from cnn425 import algorithms
        with algorithms.use("definition"):
            assert same(work(), first)
        print("fine")
    """)


def test_a_default_type_of_numbers_that_loops_do_not_know():
    run("""
        torch.set_default_dtype(torch.bfloat16)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            F.max_pool2d(torch.randn(2, 3, 8, 8, dtype=torch.float32), 2)
        from cnn425.kernels.pool import pool_images
        assert pool_images.compiled
        print("fine")
    """)


def test_without_just_in_time_compilation():
    run(
        """
        x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
        assert torch.allclose(F.conv2d(x, w), torch.nn.functional.conv2d(x, w), atol=1e-5)
        assert torch.equal(F.max_pool2d(x, 2), torch.nn.functional.max_pool2d(x, 2))
        print("fine")
        """,
        NUMBA_DISABLE_JIT="1",
    )


def test_numbas_own_threads_are_never_started(forking):
    """The threads are torch's: no second set in the process, and numba's number of threads has no part in it."""
    forking("""
        torch.set_num_threads(2)
        work()
        assert not [name for name in sys.modules if name.startswith("numba.np.ufunc") and name.endswith("pool")]
        print("fine")
    """)


@pytest.mark.parametrize("variables", [{"OMP_NUM_THREADS": "2", "OMP_DYNAMIC": "true"}, {"OMP_THREAD_LIMIT": "1"}], ids=str)
def test_openmps_settings(variables):
    """Fewer threads than asked for compute all units all the same."""
    run("assert right(work); print('fine')", **variables)
