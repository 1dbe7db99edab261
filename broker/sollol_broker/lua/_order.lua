-- The twin of fair_order.py. Pure. Times in virtual ms.
local SIZE_WEIGHT = 10

-- returns start, finish, rank
local function tag(now, finish, cost, weight, head_start, speed, weights)
  local start = math.max(now, finish)
  return start, start + cost / weight, start + (head_start + SIZE_WEIGHT * cost) * speed / math.max(1, weights)
end

local function corrected(now, finish, predicted, actual, weight)
  return math.max(now, finish + (actual - predicted) / weight)
end
