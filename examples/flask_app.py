"""The client inside a Flask application: one for the process, used by all its threads.

flask --app examples/flask_app.py run
curl 'http://127.0.0.1:5000/ask?text=Name+a+fruit'
"""

import os

from flask import Flask, Response, jsonify, request

from sollol import Client, QueueFull, SollolError

MODEL = os.environ.get("SOLLOL_MODEL", "smollm2")
app = Flask(__name__)
client = Client(app="flask-example")


@app.get("/ask")
def ask() -> Response:
    """One answer, as JSON."""
    job = client.submit(chat=request.args["text"], model=MODEL, deadline=60, options={"num_predict": 32})
    answer = job.result()
    return jsonify(answer=answer.text, node=answer.routing.node, job=job.id)


@app.get("/stream")
def stream() -> Response:
    """The same, as it is made."""
    job = client.submit(
        chat=request.args["text"], model=MODEL, stream=True, deadline=60, options={"num_predict": 32}
    )
    return Response((str(piece) for piece in job), mimetype="text/plain")


@app.errorhandler(QueueFull)
def full(error: QueueFull) -> tuple[Response, int, dict[str, str]]:
    """The fabric says when to come back."""
    return jsonify(error=str(error)), 503, {"Retry-After": str(round(error.retry_after) or 1)}


@app.errorhandler(SollolError)
def failed(error: SollolError) -> tuple[Response, int]:
    """Its text says what happened and what to do; it never holds a prompt."""
    return jsonify(error=str(error)), 502
