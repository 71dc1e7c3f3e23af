package import IntFlashAttention

/// Which tile loop computes a recipe.
package enum CUDAMethod: Hashable, Sendable {
  /// INT8 codes, P against the maximum of each tile, scales of V folded into the logits.
  case int8
  /// INT8 codes, P against the running maximum, one scale of V per head.
  case int8Paper
  /// bfloat16 or float16 operands and P.
  case float(ElementType)

  /// nil where no kernel computes the recipe.
  package init?(_ recipe: QuantizationRecipe) {
    switch recipe {
    case Precision.int8.recipe: self = .int8
    case Precision.int8Paper.recipe: self = .int8Paper
    case Precision.bfloat16.recipe: self = .float(.bfloat16)
    case Precision.float16.recipe: self = .float(.float16)
    default: return nil
    }
  }

  /// Whether the products are of INT8 codes.
  package var hasIntegerProducts: Bool { self == .int8 || self == .int8Paper }
}

/// The generation of tensor core instructions that a tile loop is written in.
package enum CUDAFamily: String, Hashable, Sendable {
  /// `mma`, from compute capability 8.0 on.
  case sm80
  /// `wgmma` and the copy engine, on compute capability 9.0.
  case sm90
}

/// How a call is cut for a GPU: a pure function of the shape and of what the device has.
package struct CUDATileSizes: Hashable, Sendable {
  package let family: CUDAFamily
  /// Channels of a row of codes: those of the head, padded with zeros to what kernels exist for.
  package let dimension: Int
  /// Query rows of a block.
  package let queryBlockLength: Int
  /// Threads of a block.
  package let threadCount: Int
  /// Keys of a tile.
  package let tileLength: Int
  /// Keys of the first tile that do not exist, so that it is as short as the recipe wants it.
  package let tileLead: Int
  /// Stages of keys and values that are on their way at once.
  package let stageCount: Int
  /// Bytes of shared memory of a block.
  package let sharedByteCount: Int
  /// Blocks of query rows of all heads.
  package let blockCount: Int
  /// Parts of the keys that are computed apart and merged.
  package let splitCount: Int
  /// Tiles of a part.
  package let tilesPerSplit: Int

  /// Calls with at most this many query rows take blocks of this many: a larger one would idle.
  package static let fewRows = 64

  private init(
    rows: Int,
    heads: Int,
    shape: AttentionShape,
    method: CUDAMethod,
    major: Int,
    multiprocessorCount: Int
  ) {
    let needed = max(shape.headDimension, shape.valueDimension)
    if major == 9, method.hasIntegerProducts {
      // Rows as long as a swizzle's span: no 96. A tile of 256 channels must be short, or it spills.
      family = .sm90
      dimension = [64, 128].first { needed <= $0 } ?? 256
      queryBlockLength = 128
      threadCount = 384
      tileLength = dimension > 128 ? 64 : 128
      tileLead = tileLength - 64
      stageCount = dimension > 128 ? 3 : 4
      sharedByteCount =
        queryBlockLength * dimension + stageCount * tileLength * (2 * dimension + 12)
        + 24 + 32 * stageCount
    } else {
      family = .sm80
      dimension = [64, 96, 128].first { needed <= $0 } ?? 256
      let elementBytes = method.hasIntegerProducts ? 1 : 2
      // 256 channels of 16 bits: a longer block would not fit into the memory of 8.6 and 8.9.
      let isWide = dimension * elementBytes == 512
      queryBlockLength = rows <= Self.fewRows || isWide ? Self.fewRows : 128
      threadCount = queryBlockLength / 16 * 32
      // Longer tiles spill registers.
      tileLength = dimension > 128 ? 32 : 64
      tileLead = 0
      stageCount = 2
      let tableBytes = method.hasIntegerProducts ? 16 : 0
      sharedByteCount =
        queryBlockLength * dimension * elementBytes
        + stageCount * tileLength * (2 * dimension * elementBytes + tableBytes)
    }
    blockCount = heads * ((rows + queryBlockLength - 1) / queryBlockLength)
    let tiles = (shape.keyValueLength + tileLead + tileLength - 1) / tileLength
    // Long keys and few blocks leave multiprocessors without work: two blocks for each, but no part
    // shorter than eight tiles, as every part costs a pass over its result.
    let wanted = (2 * multiprocessorCount) / max(blockCount, 1)
    let splits = min(max(wanted, 1), max(tiles / 8, 1), 256)
    tilesPerSplit = max((tiles + splits - 1) / splits, 1)
    splitCount = max((tiles + tilesPerSplit - 1) / tilesPerSplit, 1)
  }

  /// For calls on a cache: the heads of a group are rows of one head, and codes lie as `mma` wants
  /// them, which every device has.
  package init(cached shape: AttentionShape, multiprocessorCount: Int) {
    self.init(
      rows: shape.queryLength * shape.groupSize,
      heads: shape.batchCount * shape.keyValueHeadCount,
      shape: shape,
      method: .int8,
      major: 8,
      multiprocessorCount: multiprocessorCount
    )
  }

  package init(
    shape: AttentionShape,
    method: CUDAMethod,
    major: Int,
    multiprocessorCount: Int
  ) {
    self.init(
      rows: shape.queryLength,
      heads: shape.batchCount * shape.queryHeadCount,
      shape: shape,
      method: method,
      major: major,
      multiprocessorCount: multiprocessorCount
    )
  }

  /// Registers of a lane that hold a row of a head in the pre-pass.
  package var elementsPerLane: Int { dimension / 32 }
}

extension QuantizationRecipe {
  /// The recipe as the GPU cuts it: its own tiles, and powers of two to the precision of float32.
  ///
  /// What a kernel computes is held against the reference backend with this recipe.
  package func cut(by sizes: CUDATileSizes) -> QuantizationRecipe {
    var recipe = self
    recipe.firstTileLength = sizes.tileLength - sizes.tileLead
    recipe.tileLength = sizes.tileLength
    recipe.tilesPerSpan = sizes.tilesPerSplit
    recipe.exponential = .exact
    return recipe
  }
}
