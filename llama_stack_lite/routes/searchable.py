"""The routes of what can be searched, which are there where the distribution has `vector_io`."""

from . import store_files, vector_io, vector_stores

ROUTERS = (
    vector_stores.searching,
    vector_io.searching,
    vector_io.router,
    vector_stores.router,
    store_files.router,
)
