"""The routes of what can be searched, which are there where the distribution has `vector_io`."""

from . import store_files, vector_io, vector_stores

ROUTERS = (
    vector_stores.router,
    vector_stores.searching,
    store_files.router,
    vector_io.router,
    vector_io.searching,
)
