using System;
using System.Collections.Generic;
using System.Linq;
using System.Net.Http;
using System.Text;
using System.Text.Json;
using System.Threading.Tasks;
using MlApi;

/// <summary>
/// The client against a running service: Program URL LOSSY_URL BUSY_URL MOVED_URL OTHER_URL API_KEY. Behind LOSSY_URL the answer to the
/// first attempt of each request is lost; BUSY_URL tells everybody to come back in a minute, and MOVED_URL to ask OTHER_URL. Prints a line for each fact; the exit code is the number of those that fail.
/// </summary>
public static class Program
{
    private static readonly JsonSerializerOptions Json =
        new JsonSerializerOptions { PropertyNamingPolicy = JsonNamingPolicy.CamelCase };

    private static int _failures;

    public static int Main(string[] args)
    {
        Run(args[0], args[1], args[2], args[3], args[4], args[5]).GetAwaiter().GetResult();
        return _failures;
    }

    private static async Task Run(
        string url, string lossyUrl, string busyUrl, string movedUrl, string otherUrl, string apiKey)
    {
        HttpClient http = Client(url, apiKey);
        PredictRequest first = Request("agent-1", 40);
        Answer decided = await Predict(http, first, first.IdempotencyKey());
        PredictResponse decision = decided.Read<PredictResponse>();
        Check("a decision is read", decided.Status == 200 && decision.AgentId == "agent-1"
            && decision.Signals.Count == 18 && decision.RequestId == first.RequestId);
        Check("quantities are numbers in the client's limits",
            decision.Orders.All(order => order.Quantity > 0 && order.Quantity <= 1000 && order.LimitPrice == null));

        PredictRequest later = Request("agent-1", 40);
        later.Portfolio.Cash = 17.25m;
        Answer replayed = await Predict(http, later, later.IdempotencyKey());
        Check("a fresh requestId and a changed portfolio get the first answer",
            later.RequestId != first.RequestId && replayed.Replayed && replayed.Body == decided.Body);

        PredictRequest stranger = Request("agent-2", 40);
        Answer refused = await Predict(http, stranger, first.IdempotencyKey());
        Check("another agent's key is refused", refused.Status == 422 && !refused.Body.Contains("orders"));

        PredictRequest[] duplicates = Enumerable.Range(0, 20).Select(_ => Request("agent-3", 40)).ToArray();
        Answer[] answers = await Task.WhenAll(duplicates.Select(duplicate => Predict(http, duplicate, duplicate.IdempotencyKey())));
        Check("twenty at once share one decision",
            answers.All(answer => answer.Status == 200) && answers.Select(answer => answer.Body).Distinct().Count() == 1);

        PredictRequest lost = Request("agent-4", 40);
        Answer found = await Predict(Client(lossyUrl, apiKey), lost, lost.IdempotencyKey());
        Check("a lost answer is found again, and decided once",
            found.Status == 200 && found.Replayed && found.Read<PredictResponse>().RequestId == lost.RequestId);

        PredictRequest quiet = Request("agent-5", 40);
        quiet.Candles.ForEach(candle => candle.Volume = 0m);
        Check("zero volume is decided", (await Predict(http, quiet, quiet.IdempotencyKey())).Status == 200);

        PredictRequest empty = Request("agent-6", 0);
        Answer nothing = await Predict(http, empty, empty.IdempotencyKey());
        Check("no candles, no orders", empty.IdempotencyKey() == "agent-6-nocandles" && nothing.Status == 200
            && nothing.Read<PredictResponse>().Orders.Count == 0);

        Answer unknown = await Predict(Client(url, "wrong"), first, first.IdempotencyKey());
        Check("a wrong API key is 401, and no replay", unknown.Status == 401 && !unknown.Replayed);

        Answer busy = await Predict(Client(busyUrl, apiKey), first, first.IdempotencyKey());
        Check("who is told to come back in a minute is told so", busy.Status == 429);

        Answer moved = await Predict(Client(movedUrl, apiKey), first, first.IdempotencyKey());
        Check("a redirect is returned and not followed", moved.Status == 307);
        var handler = new IdempotencyHandler(apiKey, new Uri(movedUrl)) { InnerHandler = new SocketsHttpHandler() };
        moved = await Predict(new HttpClient(handler) { BaseAddress = new Uri(movedUrl) }, first, "another");
        Check("nor by the other handler of .NET", moved.Status == 307);
        HttpResponseMessage elsewhere = await http.SendAsync(new HttpRequestMessage(HttpMethod.Get, new Uri(otherUrl)));
        Check("another address is asked as it is", (int)elsewhere.StatusCode == 200);

        PredictRequest nameless = Request(null, 40);
        Answer invalid = await Predict(http, nameless, "nameless");
        Check("a violation says where", invalid.Status == 422 && invalid.Body.Contains("agentId"));
    }

    private static HttpClient Client(string url, string apiKey)
    {
        var handler = new IdempotencyHandler(apiKey, new Uri(url))
        {
            InnerHandler = new HttpClientHandler(),
            FirstDelay = TimeSpan.FromMilliseconds(20),
        };
        return new HttpClient(handler) { BaseAddress = new Uri(url), Timeout = TimeSpan.FromSeconds(60) };
    }

    private static async Task<Answer> Predict(HttpClient http, PredictRequest request, string key)
    {
        var message = new HttpRequestMessage(HttpMethod.Post, "/predict")
        {
            Content = new StringContent(JsonSerializer.Serialize(request, Json), Encoding.UTF8, "application/json"),
        };
        message.Headers.Add(IdempotencyHandler.KeyHeader, key);
        HttpResponseMessage response = await http.SendAsync(message);
        return new Answer
        {
            Status = (int)response.StatusCode,
            Replayed = response.Headers.Contains("Idempotency-Replayed"),
            Body = await response.Content.ReadAsStringAsync(),
        };
    }

    private static PredictRequest Request(string agent, int hours)
    {
        var newest = new DateTimeOffset(2026, 2, 20, 14, 0, 0, TimeSpan.Zero);
        var request = new PredictRequest { AgentId = agent };
        request.Portfolio.Cash = 5000.00m;
        request.Portfolio.TotalValue = 100000.00m;
        for (int age = 0; age < hours; age++)
        {
            foreach (KeyValuePair<string, decimal> asset in
                new Dictionary<string, decimal> { { "BTC", 66000m }, { "ETH", 2900m } })
            {
                decimal close = Math.Round(asset.Value * (1m + 0.02m * (decimal)Math.Sin(age / 3.0)), 8);
                request.Candles.Add(new Candle
                {
                    Symbol = asset.Key,
                    Timestamp = newest.AddHours(-age),
                    Open = close,
                    High = close,
                    Low = close,
                    Close = close,
                    Volume = 1000.5m + age,
                });
            }
        }
        return request;
    }

    private static void Check(string fact, bool holds)
    {
        Console.WriteLine((holds ? "ok    " : "FAILED ") + fact);
        _failures += holds ? 0 : 1;
    }

    private sealed class Answer
    {
        public int Status;
        public bool Replayed;
        public string Body;

        public T Read<T>()
        {
            return JsonSerializer.Deserialize<T>(Body, Json);
        }
    }
}
