/* One job: claim, finish and reap, with workers that die or wake up late, a replica that lags, and a failover.
 *
 * SHOWN     what a worker shows when it finishes: 0 nothing, 1 the fence (a counter), 2 fence and nonce
 * FAILOVER  1 = the primary may be lost once; the replica's older state takes its place
 * LATCH     1 = the client keeps the first answer that it reads
 *
 * Holds: only the owner of the present attempt is heard; the client has at most one answer.
 */
#ifndef SHOWN
#define SHOWN 2
#endif
#ifndef FAILOVER
#define FAILOVER 1
#endif
#ifndef LATCH
#define LATCH 1
#endif
#define CLAIMS 4 /* enough for two owners before and two after the failover */
#define NOBODY 0

mtype = { queued, running, done };
typedef Job { mtype state = queued; byte fence; byte nonce = NOBODY };

Job primary, replica;
byte claims; /* all that were ever made: the next one's nonce */
byte crashes;
byte answers; /* that the client has taken */
bool failed_over;

inline copy(from, to) {
  to.state = from.state;
  to.fence = from.fence;
  to.nonce = from.nonce
}

#define OVER (primary.state == done || claims == CLAIMS)

proctype Worker() {
  byte fence, nonce;
  do
  :: atomic { nonce == NOBODY && primary.state == queued && claims < CLAIMS ->
       claims++;
       primary.fence++;
       primary.nonce = claims;
       primary.state = running;
       fence = primary.fence;
       nonce = primary.nonce }
  :: atomic { nonce != NOBODY -> /* as late as it likes: it may have been frozen */
       if
       :: SHOWN == 0 || (primary.state == running && primary.fence == fence && (SHOWN == 1 || primary.nonce == nonce)) ->
            assert(primary.nonce == nonce);
            primary.state = done
       :: else -> skip /* refused */
       fi;
       nonce = NOBODY }
  :: atomic { nonce != NOBODY && crashes < 1 -> crashes++; nonce = NOBODY }
  :: nonce == NOBODY && OVER -> break
  od
}

/* A lease may end at any time: clocks step, workers hang. The attempt loses its nonce, the counter stays. */
proctype Reaper() {
  do
  :: atomic { primary.state == running -> primary.state = queued; primary.nonce = NOBODY }
  :: OVER -> break
  od
}

proctype Replication() {
  do
  :: atomic { copy(primary, replica) }
  :: atomic { FAILOVER && !failed_over -> failed_over = true; copy(replica, primary) }
  :: OVER && (failed_over || !FAILOVER) -> break
  od
}

proctype Client() {
  byte read = NOBODY;
end: /* an answer that never comes is no fault here: nobody may be left to give it */
  do
  :: atomic { primary.state == done && read != primary.nonce ->
       read = primary.nonce;
       if
       :: !LATCH || answers == 0 -> answers++
       :: else -> skip
       fi;
       assert(answers <= 1) }
  od
}

init { atomic { run Worker(); run Worker(); run Reaper(); run Replication(); run Client() } }
