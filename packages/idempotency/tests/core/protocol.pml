/*
 * The protocol of one key, stated a second time, independently of the code: scripts/spin runs it.
 *
 * CLIENTS clients make TRIES tries each, among FAULTS lost calls and replies, CRASHES, LAPSES of the lease and LOSSES
 * of the record. MODE 1 is at least once, 2 at most once, 3 effect and record in one transaction. A try that crashes
 * is a process that died; the client's next try is its retry. MISTAKE puts one of five mistakes in, to be found.
 */

mtype = { ABSENT, RUNNING, COMPLETED };
mtype = { LOST, OURS, THEIRS, UNKNOWN, DONE, REFUSED };

mtype record = ABSENT;     /* the store's one record: its state, */
byte owner, outcome;       /* whose token it holds, and whose outcome, from 1 on; */
bool lapsed;               /* whether its lease is over; */
byte life;                 /* how many records there have been. */

byte faults, crashes, lapses, losses, takeovers, effects, unrecorded, over;
byte told[12];             /* the outcome that was answered in each life of the record */

#define MINE (record == RUNNING && owner == token)
#define ALLOWED (1 + losses + (MODE == 1 -> takeovers : 0))

inline may_be_lost() { if :: faults < FAULTS -> faults++; got = LOST :: true fi }

inline acquire() {
  if
  :: record == ABSENT -> record = RUNNING; owner = token; lapsed = false; life++; got = OURS
  :: MINE -> got = OURS
  :: record == RUNNING && owner != token ->
       if
       :: lapsed && MODE != 2 -> owner = token; lapsed = false; takeovers++; got = OURS
       :: lapsed && MODE == 2 -> got = UNKNOWN
       :: !lapsed -> got = THEIRS
       fi
  :: record == COMPLETED -> got = DONE
  fi;
  may_be_lost()
}

inline complete() {
  if
  :: MINE -> record = COMPLETED; outcome = token + 1; got = OURS
  :: record == COMPLETED && owner == token -> got = OURS
  :: !(record != ABSENT && owner == token) -> got = REFUSED
  fi;
  may_be_lost()
}

inline release() { if :: MINE -> record = ABSENT; owner = 0; lapsed = false :: else fi }

inline effect() { effects++; assert(effects <= ALLOWED) }                                           /* I2 */

inline answer(what, when) {
  assert(told[when] == 0 || told[when] == what);                                                    /* I3 */
  told[when] = what
}

proctype client(byte id) {
  byte token, try, tries_left; mtype got;
  do
  :: try == TRIES -> break
  :: try < TRIES ->
     token = 1 + id * TRIES + try; try++;
claim:
     atomic {
       if
       :: crashes < CRASHES -> crashes++; goto next
       :: acquire()
       :: faults < FAULTS -> faults++; got = LOST                                                   /* never arrived */
       fi;
       if
       :: got == OURS -> skip
       :: got == DONE -> answer(outcome, life); goto next
       :: got == THEIRS -> if :: MISTAKE == 1 -> skip :: MISTAKE != 1 -> goto next fi
       :: got == UNKNOWN -> if :: MISTAKE == 2 -> skip :: MISTAKE != 2 -> goto next fi
       :: got == LOST -> if :: MISTAKE == 3 -> goto next :: MISTAKE != 3 -> goto free fi
       fi
     };
work:
     atomic {
       if
       :: crashes < CRASHES -> crashes++; goto next
       :: MODE != 3 -> effect()
       :: MODE == 3 && MINE -> record = COMPLETED; outcome = token + 1; effect(); may_be_lost();
            if :: got == LOST -> goto free :: got != LOST -> skip fi
       :: MODE == 3 && !MINE -> goto free
       fi;
       tries_left = 2
     };
keep:
     atomic {
       if
       :: crashes < CRASHES -> crashes++; goto next
       :: complete()
       :: faults < FAULTS -> faults++; got = LOST
       fi;
       if
       :: got == OURS -> if :: losses == 0 -> answer(token + 1, life) :: losses > 0 -> skip fi; goto next
       :: got == REFUSED -> if :: MISTAKE == 4 -> answer(token + 1, life); goto next :: MISTAKE != 4 -> skip fi
       :: got == LOST && tries_left > 0 -> tries_left--; if :: MISTAKE == 5 -> goto free :: MISTAKE != 5 -> goto keep fi
       :: got == LOST && tries_left == 0 -> unrecorded++; goto next
       fi
     };
     atomic {                                                                                       /* E8: look */
       if
       :: crashes < CRASHES -> crashes++
       :: record == COMPLETED -> answer(outcome, life)
       :: record != COMPLETED -> skip
       fi;
       goto next
     };
free:
     atomic { if :: crashes < CRASHES -> crashes++ :: release() fi };
next:
     skip
  od;
  over++
}

proctype weather() {
  do
  :: atomic { record == RUNNING && !lapsed && lapses < LAPSES -> lapses++; lapsed = true }
  :: atomic { record != ABSENT && losses < LOSSES -> losses++; record = ABSENT; owner = 0; outcome = 0; lapsed = false }
  :: over == CLIENTS -> break
  od
}

init {
  byte number;
  atomic { do :: number < CLIENTS -> run client(number); number++ :: else -> break od; run weather() };
  over == CLIENTS;
  assert(MODE != 3 || losses > 0 || (record == COMPLETED) == (effects == 1));                       /* I14 */
  assert(MODE != 2 || record != RUNNING || crashes > 0 || unrecorded > 0)                           /* I10 */
}
