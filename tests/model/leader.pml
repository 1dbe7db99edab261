/* One leader per term, with leaders that are frozen, a replica that lags, and a failover.
 *
 * CHECKED   what a write of the leader is compared with: 0 nothing, 1 its name and its term
 * COUNTER   1 = a term is the last one plus 1; 0 = it is the moment of the election
 * FAILOVER  1 = the primary may be lost once; the replica's older state takes its place
 *
 * Holds: only the present leader's order is carried out; a term has one owner; and a worker, which forgets nothing
 * when Redis does, never hears a present leader whose term is older than one that it knows.
 */
#ifndef CHECKED
#define CHECKED 1
#endif
#ifndef COUNTER
#define COUNTER 0
#endif
#ifndef FAILOVER
#define FAILOVER 1
#endif
#define ELECTIONS 4
#define NOBODY 0

typedef Seat { byte leader = NOBODY; byte term; byte since };

Seat primary, replica;
byte now;       /* the clock; two elections are never in the same moment, since a lease lies between them */
byte elections;
byte newest;    /* term that the workers know */
byte owner[ELECTIONS + 2];
/* Leases end at a moment, so one that has ended has ended on the replica, too */
bool lapsed[ELECTIONS + 2];
bool failed_over;

inline copy(from, to) {
  to.leader = from.leader;
  to.term = from.term;
  to.since = from.since
}

#define LEASED (primary.leader != NOBODY && !lapsed[primary.since])
#define OVER (elections == ELECTIONS)

proctype Candidate(byte me) {
  byte term;
  do
  :: atomic { !LEASED && elections < ELECTIONS ->
       elections++;
       now++;
       if
       :: COUNTER || now <= primary.term -> primary.term++
       :: else -> primary.term = now
       fi;
       primary.leader = me;
       primary.since = now;
       term = primary.term;
       assert(owner[term] == NOBODY || owner[term] == me);
       owner[term] = me }
  :: atomic { term > 0 -> /* an order, as late as it likes */
       if
       :: CHECKED == 0 || (LEASED && primary.leader == me && primary.term == term) ->
            assert(primary.leader == me && primary.term == term);
            assert(term >= newest);
            newest = term
       :: else -> term = 0 /* refused: it knows now */
       fi }
  :: OVER -> break
  od
}

/* A lease ends when its leader dies, hangs, or the clock steps. */
proctype Time() {
  do
  :: atomic { LEASED -> lapsed[primary.since] = true }
  :: OVER -> break
  od
}

proctype Replication() {
  do
  :: atomic { copy(primary, replica) }
  :: atomic { FAILOVER && !failed_over -> failed_over = true; copy(replica, primary) }
  :: OVER -> break
  od
}

init { atomic { run Candidate(1); run Candidate(2); run Time(); run Replication() } }
