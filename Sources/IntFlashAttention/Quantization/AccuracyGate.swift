/// The error bounds of a precision: what `intfa check` and the tests enforce.
///
/// All errors are relative L1 against float64 attention on the stored inputs. See the article on
/// accuracy for protocol and measurements.
public struct AccuracyGate: Hashable, Sendable {
  /// Bound of every file of activations of a language model, causal.
  public let worst: Double
  /// Bound of the mean over at least four such files.
  public let mean: Double
  /// The smallest cosine on them.
  public let cosine: Double
  /// Bound of the distance to the recipe as first specified: what catches a missing rotation when
  /// the data happen to be kind.
  public let specification: Double
  /// Bound on normal data, D = 64, without mask, up to 1024 keys.
  public let normal: Double
  /// The same up to 16384 keys.
  public let normalLong: Double
  /// Bound on uniform data in −½…½; nil where none is stated.
  public let uniform: Double?
  /// Bound of the distance between a backend and `ReferenceBackend` running the same recipe: P may
  /// round differently where float32 and double disagree on a tie.
  public let rounding: Double

  /// The bound on normal data of this many keys.
  public func normal(keyValueLength: Int) -> Double {
    keyValueLength <= 1024 ? normal : normalLong
  }

  fileprivate init(
    worst: Double,
    mean: Double,
    cosine: Double,
    specification: Double,
    normal: Double,
    normalLong: Double? = nil,
    uniform: Double? = nil,
    rounding: Double
  ) {
    self.worst = worst
    self.mean = mean
    self.cosine = cosine
    self.specification = specification
    self.normal = normal
    self.normalLong = normalLong ?? normal
    self.uniform = uniform
    self.rounding = rounding
  }
}

extension Precision {
  /// The error bounds of this precision.
  public var gate: AccuracyGate {
    switch self {
    case .int8:
      AccuracyGate(
        worst: 0.013,
        mean: 0.011,
        cosine: 0.99985,
        specification: 0.012,
        normal: 0.014,
        uniform: 0.009,
        rounding: 1e-3
      )
    case .int8Paper:
      AccuracyGate(
        worst: 0.20,
        mean: 0.115,
        cosine: 0.985,
        specification: 0.03,
        normal: 0.03,
        normalLong: 0.05,
        rounding: 3e-3
      )
    case .int8QueryKey:
      AccuracyGate(
        worst: 0.009,
        mean: 0.0075,
        cosine: 0.9999,
        specification: 0.006,
        normal: 0.01,
        rounding: 1e-3
      )
    case .int8QueryKeyPaper:
      AccuracyGate(
        worst: 0.032,
        mean: 0.024,
        cosine: 0.9994,
        specification: 0.012,
        normal: 0.01,
        rounding: 1e-4
      )
    case .int4:
      AccuracyGate(
        worst: 0.065,
        mean: 0.05,
        cosine: 0.9975,
        specification: 0.02,
        normal: 0.1,
        rounding: 1e-3
      )
    case .int4KeyValue:
      AccuracyGate(
        worst: 0.1,
        mean: 0.08,
        cosine: 0.995,
        specification: 0.02,
        normal: 0.135,
        rounding: 1e-3
      )
    case .int4QueryKey:
      AccuracyGate(
        worst: 0.11,
        mean: 0.095,
        cosine: 0.99,
        specification: 0.03,
        normal: 0.16,
        rounding: 1e-3
      )
    case .float8:
      AccuracyGate(
        worst: 0.105,
        mean: 0.09,
        cosine: 0.993,
        specification: 0.03,
        normal: 0.065,
        rounding: 3e-3
      )
    case .bfloat16:
      AccuracyGate(
        worst: 0.008,
        mean: 0.005,
        cosine: 0.9999,
        specification: 1e-3,
        normal: 0.005,
        rounding: 1e-3
      )
    case .float16:
      AccuracyGate(
        worst: 0.001,
        mean: 0.0006,
        cosine: 0.999998,
        specification: 0.001,
        normal: 0.0004,
        rounding: 1e-4
      )
    case .float32:
      AccuracyGate(
        worst: 1e-5,
        mean: 1e-5,
        cosine: 0.9999999,
        specification: 1e-5,
        normal: 1e-5,
        rounding: 1e-5
      )
    }
  }
}
