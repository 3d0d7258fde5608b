/* The lease protocol of an effect, for the model checker Spin: safeagent_sa/_effects/lease.py and flow.py.
 *
 * Every atomic block is one transaction on the row; the call is between two of them. The clock is the worst possible one:
 * at each read the model chooses freely whether the lease has ended. Each worker may die before each of its steps.
 *
 *     -DRETRY     an attempt may begin where an earlier one may have happened
 *     -DNO_MARK   mutant: the mark before the call is not written
 *     -DNO_FENCE  mutant: the outcome is written without checking the token
 */

#define WORKERS 3

mtype = { NONE, LEASED, IN_DOUBT, COMPLETED };

mtype status = NONE;
byte token = 0;        /* the worker whose attempt is the current one; 0 for none */
bool started = false;  /* the mark */
byte calls = 0;        /* the calls that the other system has received */
byte completions = 0;

active [WORKERS] proctype worker() {
    byte me = _pid + 1;
    bool expired;

    /* take */
    atomic {
        if
        :: expired = true
        :: expired = false
        fi;
        if
        :: status == NONE -> status = LEASED; token = me; started = false
        :: status == COMPLETED -> goto end
        :: status == LEASED && !expired -> goto end
        :: status == LEASED && expired && !started -> token = me
#ifdef RETRY
        :: status == LEASED && expired && started -> token = me
        :: status == IN_DOUBT -> status = LEASED; token = me
#else
        :: status == LEASED && expired && started -> status = IN_DOUBT; goto end
        :: status == IN_DOUBT -> goto end
#endif
        fi
    }
    if
    :: goto end  /* dies */
    :: skip
    fi;
    /* start */
    atomic {
        if
        :: status == LEASED && token == me ->
#ifndef NO_MARK
            started = true
#else
            skip
#endif
        :: else -> goto end
        fi
    }
    if
    :: goto end
    :: skip
    fi;
    /* the call */
    calls++;
    if
    :: goto end
    :: skip
    fi;
    /* complete */
    atomic {
        if
#ifdef NO_FENCE
        :: true ->
#else
        :: token == me && (status == LEASED || status == IN_DOUBT) ->
#endif
            status = COMPLETED; completions++
        :: else -> skip
        fi
    }
end:
    assert(completions <= 1);
#ifndef RETRY
    assert(calls <= 1)
#endif
}
