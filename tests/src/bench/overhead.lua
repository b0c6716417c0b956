-- The load of `cargo xtask bench overhead`, for wrk: which key each request names, and the figures as one line of JSON.
--
-- Arguments (after wrk's --): "repeated SEED COUNT" or "fresh PREFIX".
local make

function init(args)
  local post = function(id) return wrk.format("POST", "/accounts/" .. id .. "/transfer") end
  if args[1] == "repeated" then
    math.randomseed(tonumber(args[2]))
    local count = tonumber(args[3])
    -- Made beforehand: the load generator shares the machine with what is measured.
    local requests = {}
    for number = 1, count do requests[number] = post(number) end
    make = function() return requests[math.random(count)] end
  elseif args[1] == "fresh" then
    local prefix, number = args[2], 0
    local head, tail = post("@"):match("^(.-)@(.*)$")
    head = head .. prefix .. "-"
    make = function()
      number = number + 1
      return head .. number .. tail
    end
  else
    error("the load is either `repeated` or `fresh`")
  end
end

function request() return make() end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nFIGURES {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,' ..
    '"failed_connect":%d,"failed_read":%d,"failed_write":%d,"failed_timeout":%d,"failed_status":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
