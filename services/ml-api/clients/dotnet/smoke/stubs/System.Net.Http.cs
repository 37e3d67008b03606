// Declarations alone, for a compiler that cannot read .NET 8's assemblies; the runtime brings the real ones.
using System.Collections;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace System.Net.Http
{
    public abstract class HttpMessageHandler : IDisposable
    {
        protected internal abstract Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken);
        public void Dispose() { }
    }

    public class SocketsHttpHandler : HttpMessageHandler
    {
        public bool AllowAutoRedirect { get; set; }
        protected internal override Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken) { throw null; }
    }

    public class HttpClientHandler : HttpMessageHandler
    {
        public bool AllowAutoRedirect { get; set; }
        protected internal override Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken) { throw null; }
    }

    public abstract class DelegatingHandler : HttpMessageHandler
    {
        public HttpMessageHandler InnerHandler { get; set; }
        protected internal override Task<HttpResponseMessage> SendAsync(
            HttpRequestMessage request, CancellationToken cancellationToken) { throw null; }
    }

    public class HttpMessageInvoker : IDisposable
    {
        public HttpMessageInvoker(HttpMessageHandler handler) { }
        public void Dispose() { }
    }

    public class HttpClient : HttpMessageInvoker
    {
        public HttpClient(HttpMessageHandler handler) : base(handler) { }
        public Uri BaseAddress { get; set; }
        public TimeSpan Timeout { get; set; }
        public Task<HttpResponseMessage> SendAsync(HttpRequestMessage request) { throw null; }
    }

    public class HttpMethod
    {
        public static HttpMethod Post { get { throw null; } }
        public static HttpMethod Get { get { throw null; } }
        public static bool operator ==(HttpMethod left, HttpMethod right) { throw null; }
        public static bool operator !=(HttpMethod left, HttpMethod right) { throw null; }
        public override bool Equals(object other) { throw null; }
        public override int GetHashCode() { throw null; }
    }

    public class HttpRequestMessage : IDisposable
    {
        public HttpRequestMessage(HttpMethod method, Uri uri) { }
        public HttpRequestMessage(HttpMethod method, string uri) { }
        public HttpMethod Method { get; set; }
        public Uri RequestUri { get; set; }
        public Version Version { get; set; }
        public HttpContent Content { get; set; }
        public Headers.HttpRequestHeaders Headers { get { throw null; } }
        public void Dispose() { }
    }

    public class HttpResponseMessage : IDisposable
    {
        public HttpStatusCode StatusCode { get; set; }
        public HttpContent Content { get; set; }
        public Headers.HttpResponseHeaders Headers { get { throw null; } }
        public void Dispose() { }
    }

    public class HttpRequestException : Exception { }

    public abstract class HttpContent : IDisposable
    {
        public Headers.HttpContentHeaders Headers { get { throw null; } }
        public Task<byte[]> ReadAsByteArrayAsync() { throw null; }
        public Task<string> ReadAsStringAsync() { throw null; }
        public Task LoadIntoBufferAsync() { throw null; }
        public void Dispose() { }
    }

    public class ByteArrayContent : HttpContent
    {
        public ByteArrayContent(byte[] content) { }
    }

    public class StringContent : ByteArrayContent
    {
        public StringContent(string content, Text.Encoding encoding, string mediaType) : base(null) { }
    }
}

namespace System.Net.Http.Headers
{
    public abstract class HttpHeaders : IEnumerable<KeyValuePair<string, IEnumerable<string>>>
    {
        public void Add(string name, string value) { }
        public bool Remove(string name) { throw null; }
        public bool Contains(string name) { throw null; }
        public bool TryAddWithoutValidation(string name, IEnumerable<string> values) { throw null; }
        public IEnumerator<KeyValuePair<string, IEnumerable<string>>> GetEnumerator() { throw null; }
        IEnumerator IEnumerable.GetEnumerator() { throw null; }
    }

    public sealed class HttpRequestHeaders : HttpHeaders { }

    public sealed class HttpContentHeaders : HttpHeaders { }

    public sealed class HttpResponseHeaders : HttpHeaders
    {
        public RetryConditionHeaderValue RetryAfter { get { throw null; } }
    }

    public class RetryConditionHeaderValue
    {
        public TimeSpan? Delta { get { throw null; } }
    }
}
