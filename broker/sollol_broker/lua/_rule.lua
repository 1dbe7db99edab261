-- The twin of claim_rule.py; the numbers are those of its docstrings. Pure: plain tables in, plain values out.
-- offer  {load=ms, a=ms per prompt token, b=ms per output token, slow=share per busy slot, busy=n, waiting=n, backlog=n,
--         settled=ms, others={{cap=n, load=ms, a=ms, b=ms, crowding=factor}, …}}
-- job    {offer=index, position=n, prompt=tokens, cached=tokens, output=tokens, waited=ms, batch=boolean, bound=boolean, behind=ms}
local WEIGHTS = {backlog = 3, regret = 0.03, patience = 1, most_ratio = 6, cold_patience_ms = 30000, cold_patience_loads = 3,
  overtaking_ms = 10000, size = 8, batch_yields_ms = 285000}
local TYPICAL_PROMPT, TYPICAL_OUTPUT = 512, 128
local ALONE_CAPACITY = 4
local MOST_SHARING_A_LOAD = 8
local INF = 1 / 0
local NOBODY = {}

local function is_due(offer, job, w)
  local loads = w.cold_patience_loads * offer.load
  return offer.load > 0 and job.waited >= math.max(w.cold_patience_ms, loads) and offer.settled >= loads
end

-- returns a bid: {own, reference, capacity, ratio, value, takes, needed, left}
local function weigh(offer, job, w)
  local slow = 1 + offer.slow * offer.busy
  local prompt = math.max(0, job.prompt - job.cached)
  local service = slow * (offer.a * prompt + offer.b * job.output)                                  -- 1
  local uncached = slow * (offer.a * job.prompt + offer.b * job.output)
  local own = offer.load / math.min(math.max(offer.waiting, 1), MOST_SHARING_A_LOAD) + service
  local capacity, total = 0, 0
  for _, each in ipairs(job.bound and NOBODY or offer.others) do                                    -- 2
    local theirs = each.load + each.crowding * (each.a * job.prompt + each.b * job.output)
    if theirs < own then
      capacity, total = capacity + each.cap, total + each.cap * theirs
    end
  end
  local due = is_due(offer, job, w)
  if capacity <= 0 then
    local ratio = uncached > 0 and own / uncached or 1
    local overtaken = w.regret * job.position / ALONE_CAPACITY + job.behind / w.overtaking_ms
    local value = due and 0 or ratio + overtaken                                                    -- 5
    return {own = own, reference = 0, capacity = 0, ratio = ratio, value = value, takes = true, needed = 0, left = 0}
  end
  local reference = total / capacity
  local ratio = reference > 0 and own / reference or INF                                            -- 3
  local needed = (ratio - 1) * capacity / w.backlog
  local left = math.max(0, w.patience * (own - reference) - job.waited)                             -- 4
  local is_near = job.batch or ratio <= w.most_ratio
  local value = due and 0 or ratio + w.regret * job.position / capacity                             -- 5
  local takes = (needed <= offer.backlog and is_near) or left <= 0
  if not is_near then needed = INF end
  if takes then needed, left = 0, 0 end
  return {own = own, reference = reference, capacity = capacity, ratio = ratio, value = value, takes = takes,
    needed = needed, left = left}
end

-- Whether a job goes before those for other models that are batch work, or wait for a load: its model is in memory, and somebody waits for
-- it, or it was passed over for long enough; or it is due.
local function is_first(offers, job, w)
  if job.bid.value == 0 then return true end
  return offers[job.offer].load == 0 and not (job.batch and job.waited < w.batch_yields_ms)
end

local function age(job, bid, w) return job.waited - w.size * bid.own end

-- returns index and bid of the job to take, or nil, nil, the backlog at which one would be taken, ms until patience ends
local function choose(offers, jobs, w)
  local best, best_bid
  local needed, again = INF, INF
  for i, job in ipairs(jobs) do
    if not job.taken then
      local bid = weigh(offers[job.offer], job, w)
      job.bid = bid
      if not bid.takes then
        needed, again = math.min(needed, bid.needed), math.min(again, bid.left)
      elseif not best then
        best, best_bid = i, bid
      elseif job.offer ~= jobs[best].offer and is_first(offers, job, w) ~= is_first(offers, jobs[best], w) then
        if is_first(offers, job, w) then best, best_bid = i, bid end
      elseif bid.value < best_bid.value or (bid.value == best_bid.value and age(job, bid, w) > age(jobs[best], best_bid, w)) then
        best, best_bid = i, bid
      end
    end
  end
  return best, best_bid, needed, again
end
