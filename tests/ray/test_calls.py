"""What Ray says of a call, in our errors."""

import pytest
import ray.exceptions

from aurora_ray.control.model.runtime import NotMadeError, ProcessGoneError
from aurora_ray.errors import ConfigurationError
from aurora_ray.ray.calls import own_error

REFUSED = ConfigurationError("the directory is another node's")


def task_error(cause: Exception) -> ray.exceptions.RayTaskError:
    text = f"ray::StorageNodeActor.__init__()\n  File x, line 1\naurora_ray.errors.{type(cause).__name__}: {cause}"
    return ray.exceptions.RayTaskError("made", text, cause)


def test_what_a_method_raised_is_raised() -> None:
    assert own_error(task_error(REFUSED)) is REFUSED


@pytest.mark.parametrize("cause", [REFUSED, ModuleNotFoundError("No module named 'x'")])
def test_an_actor_that_could_not_be_made_says_of_what_it_failed(cause: Exception) -> None:
    """It is no use to try that again and again."""
    error = own_error(ray.exceptions.ActorDiedError(task_error(cause)))
    assert isinstance(error, NotMadeError)
    assert not error.retryable
    assert str(error) == f"its process could not be made: aurora_ray.errors.{type(cause).__name__}: {cause}"


def test_an_actor_that_died_is_started_anew() -> None:
    error = own_error(ray.exceptions.ActorDiedError())
    assert type(error) is ProcessGoneError
    assert error.retryable
