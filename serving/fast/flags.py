"""What a run of the fast engine needs: constants that ``compiler.build`` sets before compilation.

``compiler.translate`` leaves out what stands behind a constant that is False, so a simple run
compiles and starts in a fraction of the time.
"""

MORE = True  # scores, several replicas or closed loops: more than fcfs of arrivals on one
POLICY = True  # scores that change, or preemption by policy
PREFIX = True  # prefix caching
GUARD = True  # a starvation guard
ASYNC = True  # asynchronous scheduling
STOPS = True  # a caller that is asked on the way, and totals for it
ROLES = True  # prefill and decode have replicas of their own
EVENTS = True  # something happens to nodes: they slow down, or fail
