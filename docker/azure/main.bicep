// The service on Azure Container Apps, over Azure Managed Redis or an Azure Cache for Redis that exists already.
//   az deployment group create --resource-group rg-ai-trading-race-prod --template-file docker/azure/main.bicep \
//     --parameters image=<registry>/ai-trading-ml:0.2.0 registry=<registry> keyVault=<name>
// The key vault must hold the secret `ml-api-key`. Nothing secret is a parameter, an output or a plain setting.

@description('Where everything runs.')
param location string = resourceGroup().location

@description('The image, with its tag or, better, its digest.')
param image string

@description('The name of the Azure Container Registry that holds the image.')
param registry string

@description('A key vault, using role-based access, with the secret ml-api-key.')
param keyVault string

@description('An existing Azure Cache for Redis, which must be set to noeviction; empty makes an Azure Managed Redis.')
param existingRedisCache string = ''

@description('The size of the Azure Managed Redis.')
param redisSku string = 'Balanced_B0'

@description('Fewest and most replicas.')
param minReplicas int = 2
param maxReplicas int = 10

@description('Origins whose pages may call the service, separated by commas; empty: none.')
param allowedOrigin string = ''

@description('Whether the service can be reached from outside its environment: /metrics and /docs, too, for they need no key.')
param external bool = false

var makesRedis = empty(existingRedisCache)
var acrPull = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '7f951dda-4ed3-4680-a7ca-43fe172d538d')
var secretsUser = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '4633458b-17de-408a-b874-0445c86b69e6')

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {
  name: keyVault
}

resource containerRegistry 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = {
  name: registry
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'ml-service'
  location: location
}

resource readsSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(vault.id, identity.id, secretsUser)
  scope: vault
  properties: {
    roleDefinitionId: secretsUser
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource pullsImages 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(containerRegistry.id, identity.id, acrPull)
  scope: containerRegistry
  properties: {
    roleDefinitionId: acrPull
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource redis 'Microsoft.Cache/redisEnterprise@2025-04-01' = if (makesRedis) {
  name: 'redis-ai-trading-race'
  location: location
  sku: {
    name: redisSku
  }
  properties: {
    minimumTlsVersion: '1.2'
    highAvailability: 'Enabled'
  }
}

resource database 'Microsoft.Cache/redisEnterprise/databases@2025-04-01' = if (makesRedis) {
  parent: redis
  name: 'default'
  properties: {
    clientProtocol: 'Encrypted'
    port: 10000
    // One endpoint; the service needs no cluster-aware client.
    clusteringPolicy: 'EnterpriseCluster'
    // The default evicts keys that have a time to live: live claims among them.
    evictionPolicy: 'NoEviction'
    accessKeysAuthentication: 'Enabled'
    persistence: {
      aofEnabled: true
      aofFrequency: '1s'
    }
  }
}

resource cache 'Microsoft.Cache/redis@2024-11-01' existing = if (!makesRedis) {
  name: makesRedis ? 'none' : existingRedisCache
}

resource redisUrl 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'ml-redis-url'
  properties: {
    value: makesRedis ? 'rediss://:${uriComponent(database.listKeys().primaryKey)}@${redis.properties.hostName}:10000/0' : 'rediss://:${uriComponent(cache.listKeys().primaryKey)}@${cache.properties.hostName}:6380/0'
  }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'ml-service'
  location: location
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: 30
  }
}

resource environment 'Microsoft.App/managedEnvironments@2024-03-01' = {
  name: 'ml-service-env'
  location: location
  properties: {
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: logs.properties.customerId
        sharedKey: logs.listKeys().primarySharedKey
      }
    }
  }
}

resource service 'Microsoft.App/containerApps@2024-03-01' = {
  name: 'ml-service'
  location: location
  dependsOn: [
    readsSecrets
    pullsImages
  ]
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    managedEnvironmentId: environment.id
    configuration: {
      activeRevisionsMode: 'Single'
      ingress: {
        external: external
        targetPort: 8000
        allowInsecure: false
      }
      registries: [
        {
          server: containerRegistry.properties.loginServer
          identity: identity.id
        }
      ]
      secrets: [
        {
          name: 'ml-api-key'
          keyVaultUrl: '${vault.properties.vaultUri}secrets/ml-api-key'
          identity: identity.id
        }
        {
          name: 'ml-redis-url'
          keyVaultUrl: '${vault.properties.vaultUri}secrets/ml-redis-url'
          identity: identity.id
        }
      ]
    }
    template: {
      // Longer than ML_SERVICE_SHUTDOWN_TIMEOUT: running requests finish and are recorded.
      terminationGracePeriodSeconds: 45
      containers: [
        {
          name: 'ml-service'
          image: image
          resources: {
            cpu: json('0.5')
            memory: '1Gi'
          }
          env: [
            {
              name: 'ML_SERVICE_API_KEY'
              secretRef: 'ml-api-key'
            }
            {
              name: 'ML_SERVICE_REDIS_ENABLED'
              value: 'true'
            }
            {
              name: 'ML_SERVICE_REDIS_URL'
              secretRef: 'ml-redis-url'
            }
            {
              name: 'ML_SERVICE_ALLOWED_ORIGIN'
              value: allowedOrigin
            }
            {
              name: 'ML_SERVICE_SHUTDOWN_TIMEOUT'
              value: '30'
            }
          ]
          probes: [
            {
              type: 'Startup'
              httpGet: {
                path: '/health'
                port: 8000
              }
              periodSeconds: 1
              failureThreshold: 30
            }
            {
              type: 'Liveness'
              httpGet: {
                path: '/health'
                port: 8000
              }
              timeoutSeconds: 3
            }
            {
              type: 'Readiness'
              httpGet: {
                path: '/ready'
                port: 8000
              }
              periodSeconds: 5
              timeoutSeconds: 3
            }
          ]
        }
      ]
      scale: {
        minReplicas: minReplicas
        maxReplicas: maxReplicas
        rules: [
          {
            name: 'requests'
            http: {
              metadata: {
                concurrentRequests: '50'
              }
            }
          }
        ]
      }
    }
  }
}

output url string = 'https://${service.properties.configuration.ingress.fqdn}'
