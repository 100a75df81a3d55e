"""Real servers on loopback for the tests, and a proxy that puts faults between them and us.

Fixtures (registered for all tests by tests/conftest.py; a server starts when it is first asked for and dies with the
test process, also after a kill -9):

``s3``      an empty bucket of its own on an S3-compatible server, with its address and keys in the environment:
            ``s3.url`` is "s3://bucket", ``s3.files()`` what is in it, ``s3.put(name, data)`` plants a file.
``web``     nginx with range requests: ``web.share(folder)`` returns the URL below which a folder's files are served.
            Tests that use it are skipped where nginx is missing, with the command that installs it.
``sftp``    an SFTP server: ``sftp.folder`` is what it serves, ``sftp.url`` "sftp://tester@127.0.0.1:PORT". The home
            folder of the test has a key and the known host, so that clients need no options.
``faulty``  ``faulty(upstream, plan)`` starts a proxy: requests to ``proxy.url`` go to an http address upstream, with
            the faults of a ``tests.servers.faults.Plan``. For S3: ``s3.through(proxy)`` sets AWS_ENDPOINT_URL to it.

    def test_pull(s3, faulty, tmp_path):
        push(store, f"{s3.url}/store")
        proxy = faulty(s3.endpoint, Plan(seed=1, share=0.3, kinds=("error 500", "flip"), most=2))
        s3.through(proxy)
        pull(f"{s3.url}/store", tmp_path / "store", retry=Retry(attempts=8, first_s=0.01, most_s=0.05, timeout_s=1))
        assert proxy.injected

Outside of pytest (benchmarks, soak) the same servers are context managers: ``serve_s3``, ``serve_folder``,
``serve_sftp``, ``serve_proxy``. ``HOME`` and the environment stay as they are then; ``S3.environment()`` returns what
to set.
"""
