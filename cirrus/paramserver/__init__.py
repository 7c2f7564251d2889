"""The sharded parameter server: protocol, codec, tables, optimizers, server and client.

The client half (:mod:`protocol <cirrus.paramserver.protocol>`, :mod:`codec <cirrus.paramserver.codec>`,
:mod:`client <cirrus.paramserver.client>`) imports numpy and lz4 alone, because it runs inside functions;
the server half may use numba.
"""
