using System;
using System.Collections.Generic;
using System.Net.Http;
using System.Threading;
using System.Threading.Tasks;

namespace MlApi
{
    /// <summary>
    /// Makes every POST safe to lose: adds X-API-Key and Idempotency-Key, and repeats a request that got no final answer
    /// with the same key and the same bytes. The service then answers what it answered first, or decides once.
    /// </summary>
    /// <remarks>
    /// Repeated are: no connection, a connection that broke before the answer was whole, an attempt that took longer
    /// than <see cref="AttemptTimeout"/>, and the statuses 408, 409, 425, 429, 500, 502, 503 and 504. Retry-After is
    /// obeyed up to 10 s; who is told to wait longer gets the answer that says so. Anything else is final, and so is
    /// the caller's own cancellation.
    /// <para>
    /// A key that the caller set on the request is kept: <c>PredictRequest.IdempotencyKey()</c> makes the one that
    /// stands for an agent's decision at a candle minute. Otherwise each call of SendAsync gets a new GUID.
    /// </para>
    /// <para>
    /// Both headers go to the scheme, host and port of the base address alone. A request to another one is sent as it
    /// is, once; and no redirect is followed, since .NET would take the headers and the body along: the service gives
    /// none, so that one comes from somebody else, and is returned to the caller.
    /// </para>
    /// <code>
    /// var service = new Uri("http://ml-service:8000");
    /// var http = new HttpClient(new IdempotencyHandler(apiKey, service) { InnerHandler = new HttpClientHandler() })
    /// {
    ///     BaseAddress = service,
    ///     Timeout = TimeSpan.FromSeconds(60), // for all attempts together
    /// };
    /// </code>
    /// </remarks>
    public sealed class IdempotencyHandler : DelegatingHandler
    {
        public const string KeyHeader = "Idempotency-Key";
        public const string ApiKeyHeader = "X-API-Key";

        private static readonly HashSet<int> Transient = new HashSet<int> { 408, 409, 425, 429, 500, 502, 503, 504 };
        private static readonly TimeSpan LongestDelay = TimeSpan.FromSeconds(10);

        private readonly string _apiKey;
        private readonly Uri _baseAddress;
        private readonly Random _random = new Random();

        public IdempotencyHandler(string apiKey, Uri baseAddress)
        {
            if (baseAddress == null || !baseAddress.IsAbsoluteUri)
            {
                throw new ArgumentException("The service's absolute address is required.", nameof(baseAddress));
            }
            _baseAddress = baseAddress;
            if (string.IsNullOrWhiteSpace(apiKey))
            {
                throw new ArgumentException("An API key is required.", nameof(apiKey));
            }
            _apiKey = apiKey;
        }

        /// <summary>How often a request is sent at most.</summary>
        public int Attempts { get; set; } = 4;

        /// <summary>
        /// How long one attempt may take. Above the 25 s that the service lets a duplicate wait for the first request.
        /// </summary>
        public TimeSpan AttemptTimeout { get; set; } = TimeSpan.FromSeconds(30);

        /// <summary>The delay before the second attempt; it doubles, and half of it is drawn by lot.</summary>
        public TimeSpan FirstDelay { get; set; } = TimeSpan.FromMilliseconds(200);

        protected override async Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken)
        {
            if (!IsOurs(request.RequestUri))
            {
                return await base.SendAsync(request, cancellationToken).ConfigureAwait(false);
            }
            FollowNoRedirects();
            request.Headers.Remove(ApiKeyHeader);
            request.Headers.Add(ApiKeyHeader, _apiKey);
            if (request.Method != HttpMethod.Post)
            {
                return await base.SendAsync(request, cancellationToken).ConfigureAwait(false);
            }
            if (!request.Headers.Contains(KeyHeader))
            {
                request.Headers.Add(KeyHeader, Guid.NewGuid().ToString());
            }
            // Content may be read once; the bytes may be sent as often as needed.
            byte[] body = request.Content == null
                ? null
                : await request.Content.ReadAsByteArrayAsync().ConfigureAwait(false);

            for (int attempt = 1; ; attempt++)
            {
                HttpResponseMessage response = null;
                try
                {
                    response = await SendOnceAsync(request, body, cancellationToken).ConfigureAwait(false);
                    if (attempt >= Attempts || !Transient.Contains((int)response.StatusCode) || IsFinal(response))
                    {
                        return response;
                    }
                }
                catch (Exception error) when (IsLost(error, cancellationToken) && attempt < Attempts)
                {
                    // Whether the service decided is unknown here: the key makes the next attempt find out.
                }
                TimeSpan delay = Delay(response, attempt);
                response?.Dispose();
                await Task.Delay(delay, cancellationToken).ConfigureAwait(false);
            }
        }

        /// <summary>Whether an address has the scheme, host and port that the API key is for.</summary>
        private bool IsOurs(Uri address)
        {
            return address != null && address.IsAbsoluteUri && Uri.Compare(address, _baseAddress,
                UriComponents.SchemeAndServer, UriFormat.SafeUnescaped, StringComparison.OrdinalIgnoreCase) == 0;
        }

        /// <summary>
        /// Of a redirect to another host .NET removes Authorization alone: X-API-Key and the body would go there.
        /// </summary>
        private void FollowNoRedirects()
        {
            HttpMessageHandler inner = InnerHandler;
            while (inner is DelegatingHandler between)
            {
                inner = between.InnerHandler;
            }
            if (inner is HttpClientHandler client && client.AllowAutoRedirect)
            {
                client.AllowAutoRedirect = false;
            }
            else if (inner is SocketsHttpHandler sockets && sockets.AllowAutoRedirect)
            {
                sockets.AllowAutoRedirect = false;
            }
        }

        private async Task<HttpResponseMessage> SendOnceAsync(
            HttpRequestMessage request, byte[] body, CancellationToken cancellationToken)
        {
            using (var limited = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken))
            {
                limited.CancelAfter(AttemptTimeout);
                HttpResponseMessage response =
                    await base.SendAsync(Copy(request, body), limited.Token).ConfigureAwait(false);
                try
                {
                    // The whole answer, here: one that breaks off half way is a lost one.
                    Task loaded = response.Content.LoadIntoBufferAsync();
                    Task ended = await Task.WhenAny(loaded, Task.Delay(Timeout.Infinite, limited.Token))
                        .ConfigureAwait(false);
                    if (ended != loaded)
                    {
                        throw new TaskCanceledException("The answer took longer than AttemptTimeout.");
                    }
                    await loaded.ConfigureAwait(false);
                    return response;
                }
                catch
                {
                    response.Dispose();
                    throw;
                }
            }
        }

        private static HttpRequestMessage Copy(HttpRequestMessage request, byte[] body)
        {
            var copy = new HttpRequestMessage(request.Method, request.RequestUri) { Version = request.Version };
            foreach (KeyValuePair<string, IEnumerable<string>> header in request.Headers)
            {
                copy.Headers.TryAddWithoutValidation(header.Key, header.Value);
            }
            if (body != null)
            {
                copy.Content = new ByteArrayContent(body);
                foreach (KeyValuePair<string, IEnumerable<string>> header in request.Content.Headers)
                {
                    copy.Content.Headers.TryAddWithoutValidation(header.Key, header.Value);
                }
            }
            return copy;
        }

        /// <summary>
        /// A 409 without Retry-After will not become another answer by asking again, and one that is told to come
        /// back later than a caller can wait will not either.
        /// </summary>
        private static bool IsFinal(HttpResponseMessage response)
        {
            return ((int)response.StatusCode == 409 && response.Headers.RetryAfter == null)
                || response.Headers.RetryAfter?.Delta > LongestDelay;
        }

        private static bool IsLost(Exception error, CancellationToken callers)
        {
            return error is HttpRequestException
                || error is System.IO.IOException
                || (error is OperationCanceledException && !callers.IsCancellationRequested);
        }

        private TimeSpan Delay(HttpResponseMessage response, int attempt)
        {
            TimeSpan? asked = response?.Headers.RetryAfter?.Delta;
            if (asked != null)
            {
                return asked.Value;
            }
            double full = Math.Min(
                FirstDelay.TotalMilliseconds * Math.Pow(2, attempt - 1), LongestDelay.TotalMilliseconds);
            double lot;
            lock (_random)
            {
                lot = _random.NextDouble();
            }
            return TimeSpan.FromMilliseconds(full / 2 + full / 2 * lot);
        }
    }
}
