using System;
using System.Collections.Generic;
using System.Globalization;

namespace MlApi
{
    // For System.Text.Json with JsonNamingPolicy.CamelCase; every number is a JSON number in both directions.

    public sealed class PredictRequest
    {
        public string SchemaVersion { get; set; } = "1.0";
        public string RequestId { get; set; } = Guid.NewGuid().ToString();
        public string AgentId { get; set; }
        public Portfolio Portfolio { get; set; } = new Portfolio();
        public List<Candle> Candles { get; set; } = new List<Candle>();
        public string Instructions { get; set; } = "";

        /// <summary>
        /// The key that stands for this agent's decision at its newest candle minute. Two requests that share it get
        /// one decision, whatever their RequestId and portfolio: place the orders of a replayed answer once.
        /// </summary>
        public string IdempotencyKey()
        {
            if (Candles.Count == 0)
            {
                return AgentId + "-nocandles";
            }
            DateTimeOffset newest = Candles[0].Timestamp;
            foreach (Candle candle in Candles)
            {
                if (candle.Timestamp > newest)
                {
                    newest = candle.Timestamp;
                }
            }
            return AgentId + "-" + newest.UtcDateTime.ToString("yyyyMMddHHmm", CultureInfo.InvariantCulture);
        }
    }

    public sealed class Portfolio
    {
        public decimal Cash { get; set; }
        public decimal TotalValue { get; set; }
        public List<Position> Positions { get; set; } = new List<Position>();
    }

    public sealed class Position
    {
        public string Symbol { get; set; }
        public decimal Quantity { get; set; }
        public decimal AveragePrice { get; set; }
    }

    public sealed class Candle
    {
        public string Symbol { get; set; }
        public DateTimeOffset Timestamp { get; set; }
        public decimal Open { get; set; }
        public decimal High { get; set; }
        public decimal Low { get; set; }
        public decimal Close { get; set; }
        public decimal Volume { get; set; }
    }

    public sealed class PredictResponse
    {
        public string SchemaVersion { get; set; }
        public string ModelVersion { get; set; }
        public string RequestId { get; set; }
        public string AgentId { get; set; }
        public DateTimeOffset CreatedAt { get; set; }
        public List<Order> Orders { get; set; }
        public List<Signal> Signals { get; set; }
        public string Reasoning { get; set; }
    }

    public sealed class Order
    {
        public string AssetSymbol { get; set; }
        public string Side { get; set; }
        public decimal Quantity { get; set; }
        public decimal? LimitPrice { get; set; }
    }

    public sealed class Signal
    {
        public string Feature { get; set; }
        public decimal Value { get; set; }
        public string Rule { get; set; }
        public bool Fired { get; set; }
        public string Contribution { get; set; }
    }
}
