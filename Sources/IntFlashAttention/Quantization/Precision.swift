/// The named recipes.
///
/// Each is one exact sequence of operations with stated error bounds.
///
/// The errors are relative L1 against float64 on activations of a small language model, causal, mean
/// over layers; see the article on accuracy for the protocol and for all the bounds.
public enum Precision: String, Sendable, Hashable, CaseIterable {
  /// Both products in INT8; the default. About 0.9 %.
  ///
  /// Queries and keys centred and rotated, INT8 per token; values rotated, INT8 per token with the
  /// scale folded into the logits; unsigned 8-bit P against the maximum of each tile.
  case int8
  /// The full-INT8 recipe of INT-FlashAttention (arXiv 2409.16997). About 9 %.
  ///
  /// INT8 per token for queries and keys, one scale per head for values, signed P with 127 levels
  /// against the running maximum; the row sum takes P before it is rounded, as the authors' code
  /// does. For comparison.
  case int8Paper
  /// Q·K in INT8, centred and rotated; P and V in bfloat16. About 0.5 %.
  case int8QueryKey
  /// The half-INT8 recipe of INT-FlashAttention. About 1.2 %.
  case int8QueryKeyPaper
  /// As `int8` with keys stored in 4 bits, which decode to exact INT8 codes. About 2.5 %.
  case int4
  /// As `int4` with values stored in 4 bits too. About 6 %.
  case int4KeyValue
  /// Both operands of Q·K in 4 bits, clipped. On `ReferenceBackend` only. About 6 %.
  case int4QueryKey
  /// FP8 E4M3 with one scale per head, as FlashAttention-3 has it. About 5 %.
  case float8
  /// Operands and P rounded to bfloat16, sums in float32. About 0.3 %.
  case bfloat16
  /// Operands and P rounded to float16, sums in float32. About 0.005 %.
  case float16
  /// Nothing rounded below float32.
  case float32

  /// The sequence of operations that the name stands for.
  public var recipe: QuantizationRecipe {
    var recipe = QuantizationRecipe()
    switch self {
    case .int8, .int4, .int4KeyValue:
      recipe.query = .int8(.token)
      recipe.key = .int8(.token)
      recipe.value = .int8(.token)
      recipe.rotatesQueryAndKey = true
      recipe.rotatesValue = true
      // The offset of a 4-bit group absorbs the mean; subtracting it first doubles the error.
      recipe.centersKey = self == .int8
      recipe.queryCentering = .head
      recipe.valueScale = .foldedReciprocal
      recipe.probability = .unsigned8
      recipe.reference = .tileMaximum
      recipe.rowSum = .automatic
      recipe.exponential = .table64
      recipe.refinesLastTile = true
      recipe.tileLength = 128
      recipe.tilesPerSpan = 32
      if self != .int8 { recipe.key = .int4Progressive(tokens: 32, channels: 1) }
      if self == .int4KeyValue {
        recipe.value = .int4Progressive(tokens: 1, channels: 16)
        // Integers n would move the INT8 codes that 4-bit groups are cut from.
        recipe.valueScale = .folded
      }
    case .int8Paper:
      recipe.query = .int8(.token)
      recipe.key = .int8(.token)
      recipe.value = .int8(.tensor)
      recipe.probability = .signed8
    case .int8QueryKey, .int8QueryKeyPaper:
      recipe.query = .int8(.token)
      recipe.key = .int8(.token)
      recipe.value = self == .int8QueryKey ? .bfloat16 : .float16
      recipe.probability = self == .int8QueryKey ? .bfloat16 : .float16
      if self == .int8QueryKey {
        recipe.rotatesQueryAndKey = true
        recipe.centersKey = true
        recipe.queryCentering = .head
      }
    case .int4QueryKey:
      recipe = Precision.int8.specification
      recipe.query = .int4Clipped
      recipe.key = .int4Clipped
      recipe.queryCentering = .block(64)
    case .float8:
      recipe.query = .float8(.tensor)
      recipe.key = .float8(.tensor)
      recipe.value = .float8(.tensor)
      recipe.probability = .float8
      recipe.firstTileLength = 128
      recipe.tileLength = 128
    case .bfloat16, .float16:
      let format: OperandFormat = self == .bfloat16 ? .bfloat16 : .float16
      recipe.query = format
      recipe.key = format
      recipe.value = format
      recipe.probability = self == .bfloat16 ? .bfloat16 : .float16
      recipe.tilesPerSpan = 64
    case .float32: recipe.tilesPerSpan = 64
    }
    return recipe
  }

  /// The recipe in the form in which its accuracy was first specified.
  ///
  /// It differs from `recipe` for `int8`, `int4` and `int4KeyValue`: tiles of 64 keys, real V scales,
  /// exact powers of two. What the kernels compute is held against it.
  package var specification: QuantizationRecipe {
    var recipe = recipe
    guard recipe.rowSum == .automatic else { return recipe }
    recipe.valueScale = .folded
    recipe.rowSum = .codes
    recipe.exponential = .exact
    recipe.refinesLastTile = false
    recipe.tileLength = 64
    recipe.tilesPerSpan = nil
    return recipe
  }
}
