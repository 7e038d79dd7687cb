FROM python:3.11-slim

RUN useradd --create-home tfkit
WORKDIR /home/tfkit/project
COPY --chown=tfkit . .
RUN chown tfkit .
USER tfkit
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir .

CMD [".venv/bin/python", "-m", "experiments.quickstart"]
