-- The twin of claim_rule.py; the numbers are those of its docstring. Pure: plain tables in, an index out.
-- offer  {load=ms, a=ms per prompt token, b=ms per output token}
-- job    {offer=index, rank=ms, prompt=tokens, output=tokens, submitted=ms}
local COLD_PATIENCE_MS = 30000
local COLD_PATIENCE_LOADS = 3

local function price(offer, job)           -- 1
  return offer.load + offer.a * job.prompt + offer.b * job.output
end

local function is_late(offer, job, now)    -- 2
  return now - job.submitted >= math.max(COLD_PATIENCE_MS, COLD_PATIENCE_LOADS * offer.load)
end

local function choose(offers, jobs, now)   -- 3
  local best, best_cold, best_value
  for i, job in ipairs(jobs) do
    if not job.taken then
      local offer = offers[job.offer]
      local cold = offer.load > 0 and not is_late(offer, job, now)
      local value = job.rank + price(offer, job)
      if not best or (best_cold and not cold) or (best_cold == cold and value < best_value) then
        best, best_cold, best_value = i, cold, value
      end
    end
  end
  return best
end
