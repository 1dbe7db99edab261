-- The twin of keys.py. F is the fabric's prefix, "{sollol}" or "{sollol:NAME}": all keys of a fabric share
-- that one hash tag. Functions take F as their only KEYS entry and build the rest, since a claim cannot know
-- beforehand which job's keys it will touch; a Cluster needs only the slot, and that is F's.
local function job_key(F, id) return F .. ':job:' .. id end
local function blob_key(F, id) return F .. ':blob:' .. id end
local function events_key(F, id) return F .. ':events:' .. id end
local function queue_key(F, model) return F .. ':queue:' .. model end
local function idle_key(F, model) return F .. ':idle:' .. model end
local function serves_key(F, model) return F .. ':serves:' .. model end
local function hosts_key(F, model) return F .. ':hosts:' .. model end
local function inbox_key(F, who) return F .. ':inbox:' .. who end
local function worker_key(F, worker) return F .. ':worker:' .. worker end
local function node_key(F, node) return F .. ':node:' .. node end
local function app_key(F, app) return F .. ':app:' .. app end
local function tally_key(F, node) return F .. ':tally:' .. node end
local function armed_key(F, model) return F .. ':armed:' .. model end
local function shares_key(F, model) return F .. ':shares:' .. model end
local function classes_key(F, model) return F .. ':classes:' .. model end
local function fair_key(F, model) return F .. ':fair:' .. model end
local function learned_key(F, model) return F .. ':learned:' .. model end
local function late_key(F, model) return F .. ':late:' .. model end
local function cached_key(F, model) return F .. ':cached:' .. model end
local function cache_key(F, request) return F .. ':cache:' .. request end
local function call_key(F, id) return F .. ':call:' .. id end
local function group_key(F, group) return F .. ':group:' .. group end
local function file_key(F, id) return F .. ':file:' .. id end
local function files_key(F, app) return F .. ':files:' .. app end
local function usage_key(F, app) return F .. ':usage:' .. app end
local function formable_key(F, model) return F .. ':formable:' .. model end
local function series_key(F, chunk) return F .. ':series:' .. chunk end
local function totals_key(F, node) return F .. ':totals:' .. node end
local function batch_key(F, batch) return F .. ':batch:' .. batch end
local function batch_in_key(F, batch) return F .. ':batch_in:' .. batch end
local function batch_open_key(F, batch) return F .. ':batch_open:' .. batch end
local function batch_out_key(F, batch) return F .. ':batch_out:' .. batch end
local function batch_map_key(F, batch) return F .. ':batch_map:' .. batch end
local function batch_done_key(F, batch) return F .. ':batch_done:' .. batch end
