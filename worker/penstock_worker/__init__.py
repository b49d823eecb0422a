"""The worker: claims jobs, runs them in engine processes of their own, journals every token, and writes
results, fenced.

Reading order, from the data to the process:

    messages         what worker and engine process say to each other
    stop_strings     finding stop strings across the borders of tokens
    choice           one choice of a job: tokens in, journal entries out
    running          one job while we hold it
    held             all jobs that we hold
    engine_process   the engine's process: engine_loop inside it, bridge outside it
    journal_writer   every job's new entries to Redis, one call a step
    results          ending a job in PostgreSQL, exactly once
    serving          claim, run, claim again
    hosting          which deployments this worker should have loaded; hosted_model is one of them
    heartbeat        leases, cancels, checkpoints, what others may know of us
    doorbells, tasks, stopping, app, cli     Celery around it, and the process
"""
