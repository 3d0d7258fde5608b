"""What operators look at: stored requests in a table of any size, the history of one, and what a check of the database finds.

    reads     ─► stretches   requests by an index, or from the end of the table
    timeline                 what happened to one request, as its row shows it
    figures                  how much is in doubt, due or given up, for metrics
    health                   each `finding` of `safeagent-sa doctor` and of the dashboard's page Health; it asks
      ├► request_health      the stored requests: claims without a result, doubt, effects that wait
      ├► pool_health         whether a pool is full of waiters
      └► replication         what a failover would forget, and whether another server has replaced this one
    leaves                   the parts of a table that hold its rows: itself, or its partitions
    estimates                how many rows a table has, by age and status

Everything here only reads. The command line and the dashboard share it, and it prints nothing.
"""
