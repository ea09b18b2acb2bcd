"""Files by URL: uploaded with a key, read by whoever has the URL, gone when they expire.

A file's URL, ``{base}/storage/files/{id}/{name}``, holds 128 random bits and is all it takes to
read the file: GET and HEAD, whole or one range. ``DELETE`` with a key of its owner removes it.
`base` is the scheme and host by which the upload came; for one of a container the gateway's own.

What is uploaded with a key (``Key id:secret``, the owner's token, or a runner's ``FAL_KEY``):

- ``POST /storage/files``, the content as its body: for our own toolkit, see below.
- ``POST /cdn/files/upload``: the same for fal's clients.
- ``POST /cdn/files/upload/multipart`` gives ``{access_url, uploadId}``; then, with a key, ``PUT
  {access_url}/multipart/{uploadId}/{n}`` and ``POST {access_url}/multipart/{uploadId}/complete``.
- ``POST /rest/storage/auth/token`` gives a short-lived ``Bearer`` that uploads.
- ``POST /rest/storage/upload/initiate`` and ``…/initiate-multipart`` give ``{upload_url,
  file_url}``; then, without a key, ``PUT {upload_url}``, or ``PUT {upload_url}/{n}`` and ``POST
  {upload_url}/complete``, each with the query of the ``upload_url``, which expires.

The toolkit sends ``POST {FAL_NOTEBOOK_URL}/storage/files`` with the headers ``Authorization: Key
{FAL_NOTEBOOK_KEY}`` (a secret may be called ``FAL_KEY``), ``Content-Type`` (kept as it is),
``x-fal-file-name`` (UTF-8, may be percent-encoded) and, when the file should not live as long as
the setting says, ``x-fal-object-lifecycle``: ``{"expiration_duration_seconds": 3600}``. The answer
is 200 with ``{"url", "access_url", "file_name", "content_type", "file_size"}``; ``url`` and
``access_url`` are the same. 400: a name or header cannot be used; 401: no key; 413: above
``max_upload``; 507: disk or quota is full. Each carries ``{"detail": sentence}``; nothing of a
refused upload stays.
"""
