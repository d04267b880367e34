# SPDX-License-Identifier: Apache-2.0
"""An S3 server for tests: moto, in a process of its own, which checks every signature.

    with S3Server() as s3:
        stack = Stack(env=s3.env | {"HEADRACE_BLOBS": s3.url()})
        s3.keys()

It lets the first few actions in without a signature: they make the user, its key and the bucket.
From then on whoever signs wrongly gets 403, as at the real one. It lives in memory.
"""

import json
import os
import pathlib
import socket
import subprocess

from stack import ROOT, die_with_parent, wait_until

DEPS = pathlib.Path(os.environ.get("HEADRACE_DEPS", ROOT / ".headrace/deps"))
BUCKET = "water"
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
ADMIN = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}

# Talks to the server with the makers' own client; runs in the environment that has it.
SCRIPT = r"""
import boto3, json, sys
from botocore.config import Config
ask = json.load(sys.stdin)
options = dict(endpoint_url=ask["endpoint"], region_name="us-east-1",
               aws_access_key_id=ask["key"], aws_secret_access_key=ask["secret"],
               config=Config(proxies={}))
iam = boto3.client("iam", **options)
if ask["what"] == "setup":
    keys = []
    for user, policy in ask["users"]:
        iam.create_user(UserName=user)
        key = iam.create_access_key(UserName=user)["AccessKey"]
        iam.put_user_policy(UserName=user, PolicyName="all", PolicyDocument=json.dumps(policy))
        keys.append([key["AccessKeyId"], key["SecretAccessKey"]])
    boto3.client("s3", **options).create_bucket(Bucket=ask["bucket"])
    print(json.dumps(keys))
elif ask["what"] == "refuse":
    iam.delete_user_policy(UserName=ask["user"], PolicyName="all")
    print("null")
elif ask["what"] == "allow":
    iam.put_user_policy(UserName=ask["user"], PolicyName="all", PolicyDocument=json.dumps(ask["policy"]))
    print("null")
else:
    s3 = boto3.client("s3", **options)
    bucket = ask["bucket"]
    if ask["what"] == "list":
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        print(json.dumps({o["Key"]: o["Size"] for p in pages for o in p.get("Contents", [])}))
    elif ask["what"] == "put":
        s3.put_object(Bucket=bucket, Key=ask["name"], Body=ask["body"].encode())
        print("null")
    elif ask["what"] == "delete":
        s3.delete_object(Bucket=bucket, Key=ask["name"])
        print("null")
"""
SETUP_ACTIONS = 7  # of "setup" above


class S3Server:
    def __init__(self):
        self.bin = DEPS / "venv-s3/bin"
        if not (self.bin / "moto_server").exists():
            raise AssertionError(f"the S3 server is not in {DEPS}; scripts/python/venv s3 makes it")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process, self.key, self.secret = None, "none", "none"
        self.admin = ("none", "none")
        self._start()

    def _start(self):
        env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1",
               "INITIAL_NO_AUTH_ACTION_COUNT": str(SETUP_ACTIONS)}
        self.process = subprocess.Popen(
            [self.bin / "python", self.bin / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env,
            preexec_fn=die_with_parent)
        wait_until("the S3 server to listen", self._listens, 30)
        (self.key, self.secret), self.admin = self._ask("setup", users=[("headrace", POLICY), ("admin", ADMIN)])

    def _listens(self):
        assert self.process.poll() is None, f"the S3 server ended with {self.process.returncode}"
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def _ask(self, what, **more):
        ask = dict(what=what, endpoint=self.endpoint, key=self.admin[0], secret=self.admin[1], bucket=BUCKET,
                   **more)
        run = subprocess.run([self.bin / "python", "-c", SCRIPT], input=json.dumps(ask), text=True,
                             capture_output=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        return json.loads(run.stdout)

    @property
    def env(self):
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret,
                "AWS_REGION": "us-east-1"}

    def url(self, prefix="head", **fields):
        fields = {"endpoint": self.endpoint, "spool": "/tmp"} | fields
        return f"s3://{BUCKET}/{prefix}?" + "&".join(f"{k}={v}" for k, v in fields.items())

    def keys(self):
        """Every object: key -> size."""
        return self._ask("list")

    def put(self, name, body):
        self._ask("put", name=name, body=body)

    def delete(self, name):
        self._ask("delete", name=name)

    def refuse(self, refuses):
        """The platform's key loses its rights, or gets them back."""
        self._ask("refuse" if refuses else "allow", user="headrace", policy=POLICY)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.stop()
