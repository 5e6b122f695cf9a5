# A small agent: asks the model over Chat Completions, does what it says, and
# prints JSON lines. Its argument names a way in which it is bad.
import http.client, json, os, subprocess, sys, time, urllib.error, urllib.request

BAD = sys.argv[1]


def say(**fields):
    print(json.dumps(fields), flush=True)


def tool(name, *properties):
    fields = {each: {"type": "string"} for each in properties}
    schema = {"type": "object", "properties": fields, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def ask(messages):
    body = {"model": "m", "messages": messages, "tools": [tool("write", "path", "content"), tool("bash", "command")]}
    if BAD == "search":
        body["web_search_options"] = {}
    key = "hidden" if BAD == "key" else os.environ["KEY"]
    path = "/v1/embeddings" if BAD == "route" else "/v1/chat/completions"
    request = urllib.request.Request(os.environ["BASE"] + path, json.dumps(body).encode(), {"authorization": "Bearer " + key})
    return json.load(urllib.request.urlopen(request, timeout=60))


def patiently(messages):
    for _ in range(3):
        try:
            return ask(messages)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 500, 502, 503, 504) or BAD == "impatient":
                raise
        except (OSError, ValueError, http.client.HTTPException):
            pass
        time.sleep(1)
    return ask(messages)


def do(name, arguments):
    if name == "write":
        with open(arguments["path"], "w") as file:
            file.write(arguments["content"])
        return "written"
    return subprocess.run(arguments["command"], shell=True, capture_output=True, text=True).stdout


def main():
    prompt = sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()
    if BAD == "forgets":
        prompt = "What was it again?"
    if BAD == "obeys" and prompt.startswith("/run "):
        subprocess.run(prompt.splitlines()[0][5:], shell=True)
    if BAD == "trims":
        prompt = " ".join(prompt.split())
    if BAD == "leaks":
        say(type="debug", environment="key sk-ant-" + "aB3" * 10)
    if BAD == "home":
        with open(os.path.expanduser("~/leak"), "w") as file:
            file.write("sk-ant-" + "aB3" * 10)
    if BAD == "deaf":
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    messages, used = [{"role": "user", "content": prompt}], [0, 0]
    while True:
        answer = patiently(messages)
        used[0] += answer["usage"]["prompt_tokens"]
        used[1] += answer["usage"]["completion_tokens"]
        message = answer["choices"][0]["message"]
        messages.append(message)
        say(type="text", text=message["content"])
        if not message.get("tool_calls"):
            break
        for call in message["tool_calls"]:
            arguments = json.loads(call["function"]["arguments"])
            say(type="call", name=call["function"]["name"], text=str(arguments))
            result = do(call["function"]["name"], arguments)
            say(type="result", text=result)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    say(type="end", ok=True, input=used[0], output=used[1])
    if BAD == "lingers":
        time.sleep(600)


try:
    main()
except Exception as error:
    if BAD == "deaf":
        time.sleep(60)
    if BAD != "silent":
        say(type="end", ok=False, input=0, output=0, error=str(error))
        sys.exit(1)
