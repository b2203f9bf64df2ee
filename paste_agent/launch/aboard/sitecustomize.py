"""Puts the agent on board of a Python that finds this directory on its path, and makes way for another sitecustomize.

It runs in every Python that a program starts, of whatever version: so it is written for all of them, imports next to
nothing, and never fails.
"""

import os
import sys

_directory = os.path.dirname(os.path.abspath(__file__))
_places = [os.path.abspath(entry) for entry in sys.path]
# What stands before this directory has had its turn: another sitecustomize that makes way as this one does.
_before = sys.path[: _places.index(_directory)] if _directory in _places else []
# Children find this one by PYTHONPATH; to this program nothing is on its path that is not its own.
sys.path[:] = [entry for entry in sys.path[len(_before) :] if os.path.abspath(entry) != _directory]

_implementation = getattr(getattr(sys, "implementation", None), "name", "python")
_found = "%s %d.%d%s" % (_implementation, sys.version_info[0], sys.version_info[1], getattr(sys, "abiflags", ""))  # noqa: UP031
_expected = os.environ.get("PASTE_AGENT__PYTHON", _found)
_trouble = ""
if _found != _expected:
    _trouble = "it is " + _found + ", and the agent on board is installed for " + _expected
else:
    _root = os.path.dirname(os.path.dirname(os.path.dirname(_directory)))
    sys.path.insert(0, _root)  # for one import, which imports nothing else: what is beside the package is not asked for
    try:
        import paste_agent  # noqa: F401
    except Exception:
        _trouble = "the agent cannot be imported: %s" % (sys.exc_info()[1],)  # noqa: UP031
    finally:
        sys.path.remove(_root)
    if not _trouble:
        try:
            from paste_agent.launch import on_board

            on_board.board()
        except Exception:
            _trouble = "the agent cannot be put on board: %s" % (sys.exc_info()[1],)  # noqa: UP031
if _trouble and sys.stderr is not None:
    sys.stderr.write("paste-agent: %s is not measured: %s\n" % (sys.executable, _trouble))  # noqa: UP031

# Whatever the other one raises is its own affair: the interpreter says so, as it would without this one.
_this = sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
except ImportError:
    if _this is not None:
        sys.modules.setdefault("sitecustomize", _this)
    if getattr(sys.exc_info()[1], "name", "sitecustomize") != "sitecustomize":
        raise
finally:
    sys.path[:0] = _before
