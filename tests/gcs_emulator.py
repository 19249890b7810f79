"""A Google Cloud Storage emulator on loopback, for this process and others.

It answers gcsfs (below epath), tensorstore and google-cloud-storage. The
package lacks what tensorstore relies on; it is added here: an object's
generation in the headers of its content, and conditions on it. Not emulated,
and so not tested: credentials, retries, rate limits, latency, lists in pages,
hierarchical buckets.
"""

import contextlib
import http
import logging
import re
import socket
import threading
from http import server
from socketserver import ThreadingMixIn
from unittest import mock
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import objects

BUCKET = "bucket"
_OBJECT = re.compile(r"/(?:.*/)?b/([^/]+)/o(?:/([^?]+))?")


class _Server(ThreadingMixIn, server.HTTPServer):
  """Answers several connections: clients keep them open."""

  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request, client_address):
    """Clients hang up when they have what they need."""


class _Router(emulator.Router):
  """One request at a time, each under its conditions."""

  _one = threading.Lock()

  def handle(self, method):
    with self._one:
      refused = self._refused()
      if refused is None:
        super().handle(method)
        return
      self._request_handler.rfile.read(
        int(self._request_handler.headers.get("Content-Length") or 0)
      )
      response = emulator.Response(self._request_handler)
      response.status = refused
      response.close()

  def _refused(self):
    """The status of a request whose conditions do not hold."""
    url = urlparse(self._request_handler.path)
    query, found = parse_qs(url.query), _OBJECT.fullmatch(url.path)
    if not found:
      return None
    bucket, name = found[1], unquote(found[2] or query.get("name", [""])[0])
    there = self._request_handler.storage.objects.get(bucket, {}).get(name)
    generation = there["generation"] if there else "0"
    if query.get("ifGenerationMatch", [generation]) != [generation]:
      return http.HTTPStatus.PRECONDITION_FAILED
    if query.get("ifGenerationNotMatch") == [generation]:
      return http.HTTPStatus.NOT_MODIFIED
    return None


def _download(request, response, storage, *args, **kwargs):
  _plain_download(request, response, storage, *args, **kwargs)
  if response.status < 400:
    found = storage.get_file_obj(
      request.params["bucket_name"], request.params["object_id"]
    )
    response["x-goog-generation"] = found["generation"]


_plain_download = objects.download


@contextlib.contextmanager
def running():
  """Starts it on a free port; yields the environment that leads to it."""
  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  url = f"http://127.0.0.1:{port}"
  with (
    mock.patch.object(emulator, "Router", _Router),
    mock.patch.object(emulator.server, "HTTPServer", _Server),
    mock.patch.object(objects, "download", _download),
  ):
    service = emulator.create_server(
      "127.0.0.1", port, in_memory=True, default_bucket=BUCKET
    )
    # It is in memory: nothing has to outlive it.
    service._storage._write_config_to_file = lambda: None
    service.start()
    try:
      yield {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        # Would ask Google what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      }
    finally:
      service.stop()
