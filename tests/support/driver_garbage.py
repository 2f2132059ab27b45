"""Closes what a foreign driver has left open, before its garbage becomes the failure of a later test.

A driver may leave sessions in cycles of references; they are collected whenever the interpreter likes, which is in some
other test, whose filter of warnings makes an error of an unclosed socket. (MySQL's connector, for one, does not close a
socket whose server has reset it: it shuts it down first, and stops at the error of that.)
"""

import gc
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg


@contextmanager
def garbage_closed() -> Iterator[None]:
    """On leaving, closes each PostgreSQL session and each TCP connection that was made meanwhile in this process."""
    before = {id(each): each for each in _open_connections()}  # kept, so that no later one has the same id
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
        for each in _open_connections():
            if id(each) not in before:
                each.close()


def _open_connections() -> list[psycopg.Connection | socket.socket]:
    return [each for each in gc.get_objects() if _is_session(each) or _is_connection(each)]


# By `type`: `isinstance` asks proxies of other libraries for their class, and some answer with an exception.


def _is_session(each: object) -> bool:
    return issubclass(type(each), psycopg.Connection)


def _is_connection(each: Any) -> bool:
    if not issubclass(type(each), socket.socket) or each.fileno() < 0 or each.type != socket.SOCK_STREAM:
        return False
    is_tcp = each.family in (socket.AF_INET, socket.AF_INET6)
    return is_tcp and not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
