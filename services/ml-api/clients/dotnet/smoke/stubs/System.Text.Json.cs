// Declarations alone, for a compiler that cannot read .NET 8's assemblies; the runtime brings the real ones.
namespace System.Text.Json
{
    public abstract class JsonNamingPolicy
    {
        public static JsonNamingPolicy CamelCase { get { throw null; } }
    }

    public sealed class JsonSerializerOptions
    {
        public JsonNamingPolicy PropertyNamingPolicy { get; set; }
    }

    public static class JsonSerializer
    {
        public static string Serialize<T>(T value, JsonSerializerOptions options) { throw null; }
        public static T Deserialize<T>(string json, JsonSerializerOptions options) { throw null; }
    }
}
